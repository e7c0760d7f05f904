"""`vleak list`: the names that other commands take."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from vleak.cli import output


class Kind(StrEnum):
    """What can be listed."""

    DEFENSES = "defenses"
    ATTACKS = "attacks"
    MODELS = "models"
    DATA = "data"


def list_names(kind: Annotated[Kind, typer.Argument(help="What to list.")]) -> None:
    """List the defenses, attacks, models or data that `vleak evaluate` takes, one a line on stdout."""
    table = Table("name", "what it is", box=box.SIMPLE_HEAD)
    rows = {Kind.DEFENSES: _defenses, Kind.ATTACKS: _attacks, Kind.MODELS: _models, Kind.DATA: _data}[kind]()
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
