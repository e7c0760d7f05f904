"""`vleak doctor`: versions, state of the extension and devices of this machine, and remedies."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from vleak.cli import output

_PACKAGES = ("torch", "numpy", "scipy", "opacus", "scikit-image", "av", "safetensors", "typer", "rich")


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Report versions, the state of the extension and its reason, and what to do."""
    findings = _findings()
    if json:
        output.write_json(findings)
        return
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    for name, value in findings.items():
        table.add_row(name, value)
    output.print_table(table)


def _findings() -> dict[str, str]:
    import torch

    import vleak
    from vleak.native import loader

    status = loader.status()
    findings = {
        "vleak": vleak.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    findings |= {name: _version(name) for name in _PACKAGES}
    findings["cores"] = str(os.cpu_count())
    findings["extension"] = f"{status.state}: {status.reason}"
    findings["library"] = str(status.library or "none")
    findings["built for torch"] = status.built_for or "–"
    findings["instruction set"] = status.instruction_set or "chosen by PyTorch"
    findings["loop"] = status.loop
    findings["cuda"] = status.cuda
    findings["cuda devices"] = (
        str(torch.cuda.device_count()) if torch.cuda.is_available() else "none visible to PyTorch"
    )
    findings["what to do"] = status.remedy or "nothing"
    return findings


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing: pip install vleak again"
