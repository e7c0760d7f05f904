"""`vleak list`: the names that other commands take."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from vleak.cli import output
from vleak.errors import InputError, unknown_name

Kind = Annotated[str, typer.Argument(help="defenses, attacks, models or data.", show_default=False)]


def list_names(kind: Kind = "") -> None:
    """List the defenses, attacks, models or data that `vleak evaluate` takes, one a line on stdout."""
    lists = {"defenses": _defenses, "attacks": _attacks, "models": _models, "data": _data}
    if not kind:
        raise InputError("list: expected defenses, attacks, models or data, such as `vleak list defenses`")
    if kind not in lists:
        raise unknown_name("list", kind, lists)
    table = Table("name", "what it is", box=box.SIMPLE_HEAD)
    rows = lists[kind]()
    if not output.stdout_is_terminal():
        for name in rows:
            print(name)
        return
    for name, what in rows.items():
        table.add_row(name, what)
    output.print_table(table)


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _defenses() -> dict[str, str]:
    from vleak.defenses import DEFENSES, spell, sweep

    return {
        name: f"{_first_line(kind)} Sweep: {', '.join(map(spell, sweep(name)))}"
        for name, kind in DEFENSES.items()
    }


def _attacks() -> dict[str, str]:
    from vleak.attacks import ATTACKS

    return {name: _first_line(kind) for name, kind in ATTACKS.items()}


def _models() -> dict[str, str]:
    from vleak.models import MODELS

    names = {name: _first_line(getattr(factory, "func", factory)) for name, factory in MODELS.items()}
    return names | {
        "package.module:factory": "Any torch.nn.Module from clips (N, 3, T, H, W) to logits (N, classes)."
    }


def _data() -> dict[str, str]:
    return {
        "synthetic": "Textured objects moving over photographs, labelled by motion; nothing to download.",
        "PATH": "A video file, or a folder of videos whose sub-folders are the classes.",
    }
