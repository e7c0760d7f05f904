"""HTML of the pages: templates and their style sheet."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vleak.report.filters import FILTERS

_STYLE_SHEETS = ("base.css", "tables.css", "pictures.css", "narrow.css")


def render_page(template: str, **values: object) -> str:
    """Return a page; every value in it is escaped.

    Args:
        template: name of its file among the templates.
        values: variables of the template.
    """
    css = Markup("".join(map(_read, _STYLE_SHEETS)))
    return _environment().get_template(template).render(css=css, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def _read(name: str) -> str:
    return (files("vleak.report") / "templates" / name).read_text(encoding="utf-8")
