"""`vleak list`: the names that other commands accept, and the origin of plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.table import Table

from vleak.cli import output, streams
from vleak.errors import InputError, VleakError, unknown_name

Kind = Annotated[
    str,
    typer.Argument(
        help="defenses, attacks, denoisers, models, extractors, heads, metrics, enhancers or data.",
        show_default=False,
    ),
]


class Item(NamedTuple):
    """Line of a list: name, summary and origin."""

    name: str
    summary: str
    origin: str = "built in"


def list_names(kind: Kind = "") -> None:
    """List the names that `vleak evaluate` takes, those of installed packages included, one a line."""
    lists = {"defenses": _defenses, "attacks": _attacks, "denoisers": _denoisers, "models": _models,
             "extractors": _extractors, "heads": _heads, "metrics": _metrics, "enhancers": _enhancers,
             "data": _data}  # fmt: skip
    if not kind:
        raise InputError(f"list: expected {', '.join(lists)}, such as `vleak list defenses`")
    if kind not in lists:
        raise unknown_name("list", kind, lists)
    with streams.plugins_on_stderr():
        items = lists[kind]()
    if not output.stdout_is_terminal():
        output.print_lines(item.name for item in items)
        return
    table = Table("name", "what it is", "from", box=box.SIMPLE_HEAD)
    for item in items:
        table.add_row(item.name, item.summary, item.origin)
    output.print_table(table)


def _items(registry: Any) -> list[Item]:
    """Return the entries of a registry; the summary of a broken plug-in is the reason."""
    items = []
    for name in registry:
        try:
            entry = registry.find(name)
            items.append(Item(name, entry.summary, entry.origin))
        except VleakError as error:
            items.append(Item(name, f"cannot be used: {error}", "outside"))
    return items


def _extended(items: Iterable[Item], more: Callable[[str], str]) -> list[Item]:
    """Return the items with the text of ``more(name)`` appended to their summaries."""
    return [
        item
        if item.origin == "outside"
        else item._replace(summary=f"{item.summary} {more(item.name)}".strip())
        for item in items
    ]


def _defenses() -> list[Item]:
    from vleak.defenses import DEFENSES, defense_text, parse_defenses

    def sweep(name: str) -> str:
        try:
            return f"Sweep: {', '.join(map(defense_text, parse_defenses(name)))}"
        except VleakError as error:
            return f"No sweep: {error}"

    return _extended(_items(DEFENSES), sweep)


def _attacks() -> list[Item]:
    from vleak.attacks import ATTACKS

    def takes(name: str) -> str:
        return f"Of {' and '.join(sorted(getattr(ATTACKS[name], 'takes', ())))}."

    return _extended(_items(ATTACKS), takes)


def _denoisers() -> list[Item]:
    from vleak.attacks import DENOISERS

    any_denoiser = "Any callable of clips (N, C, T, H, W), as in --attack matching:denoiser=..."
    return [*_items(DENOISERS), Item("package.module:callable", any_denoiser, "outside")]


def _models() -> list[Item]:
    from vleak.models import MODELS

    any_model = "Any torch.nn.Module from clips (N, 3, T, H, W) to logits (N, classes)."
    return [*_items(MODELS), Item("package.module:factory", any_model, "outside")]


def _extractors() -> list[Item]:
    from vleak.models import EXTRACTORS

    any_extractor = "Any frozen torch.nn.Module with segment_frames."
    return [*_items(EXTRACTORS), Item("package.module:factory", any_extractor, "outside")]


def _heads() -> list[Item]:
    from vleak.models import HEADS

    return _items(HEADS)


def _metrics() -> list[Item]:
    from vleak.metrics import METRICS

    return _items(METRICS)


def _enhancers() -> list[Item]:
    from vleak.enhance import ENHANCERS

    return [
        *_items(ENHANCERS),
        Item("spandrel:FILE", "A super-resolution checkpoint that spandrel loads."),
        Item("none", "Nothing."),
    ]


def _data() -> list[Item]:
    from vleak.data import SOURCES

    paths = (
        "A video; a folder of videos or of PNG frames, whose sub-folders are the classes; features: C3D "
        "text, I3D or CLIP .npy; or a list of UCF-Crime that names them."
    )
    return [*_items(SOURCES), Item("PATH", paths)]
