"""HTML of the pages: templates, their style sheet and their script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from vleak.report.filters import FILTERS

__all__ = ["render_page"]

_STYLE_SHEETS = ("base.css", "tables.css", "pictures.css", "cells.css", "narrow.css", "print.css")
_SCRIPTS = ("tables.js", "cells.js")


def render_page(template: str, **values: object) -> str:
    """Return a page; every value in it is escaped.

    A template that extends ``shell.html`` has the head, the navigation and the foot of all pages. The only
    script that its policy lets run is the one of this package, by its hash.

    Args:
        template: name of its file among the templates.
        values: variables of the template.
    """
    css, script = Markup("".join(map(_read, _STYLE_SHEETS))), "".join(map(_read, _SCRIPTS))
    return (
        _environment()
        .get_template(template)
        .render(css=css, script=Markup(script), policy=_policy(script), **values)
    )


def _policy(script: str) -> str:
    """Content security policy: nothing is loaded, and one script runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= FILTERS
    return environment


def _read(name: str) -> str:
    return (files("vleak.report") / "templates" / name).read_text(encoding="utf-8")
