"""`vleak list`: the names that other commands take."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from vleak.cli import output
from vleak.errors import InputError, unknown_name

Kind = Annotated[
    str,
    typer.Argument(
        help="defenses, attacks, models, extractors, heads, enhancers or data.", show_default=False
    ),
]


def list_names(kind: Kind = "") -> None:
    """List the names that `vleak evaluate` takes, one a line on stdout."""
    lists = {"defenses": _defenses, "attacks": _attacks, "models": _models, "extractors": _extractors,
             "heads": _heads, "enhancers": _enhancers, "data": _data}  # fmt: skip
    if not kind:
        raise InputError(f"list: expected {', '.join(lists)}, such as `vleak list defenses`")
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

    return {
        name: f"{_first_line(kind)} Of {' and '.join(sorted(kind.takes))}." for name, kind in ATTACKS.items()
    }


def _models() -> dict[str, str]:
    from vleak.models import MODELS

    names = {name: _first_line(getattr(factory, "func", factory)) for name, factory in MODELS.items()}
    return names | {
        "package.module:factory": "Any torch.nn.Module from clips (N, 3, T, H, W) to logits (N, classes)."
    }


def _extractors() -> dict[str, str]:
    from vleak.models import EXTRACTORS

    names = {name: _first_line(getattr(maker, "func", maker)) for name, maker in EXTRACTORS.items()}
    return names | {"package.module:factory": "Any frozen torch.nn.Module with segment_frames."}


def _heads() -> dict[str, str]:
    from vleak.models import HEADS

    return {name: _first_line(getattr(maker, "func", maker)) for name, maker in HEADS.items()}


def _enhancers() -> dict[str, str]:
    from vleak.enhance import ENHANCERS

    return ENHANCERS | {
        "spandrel:FILE": "a super-resolution checkpoint that spandrel loads",
        "none": "nothing",
    }


def _data() -> dict[str, str]:
    return {
        "synthetic": "Textured objects moving over photographs, labelled by motion; nothing to download.",
        "PATH": "A video; a folder of videos or of PNG frames, whose sub-folders are the classes; features: "
        "C3D text, I3D or CLIP .npy; or a list of UCF-Crime that names them.",
    }
