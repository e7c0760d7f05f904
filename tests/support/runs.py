"""Tiny evaluations that several test files run and compare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vleak.evaluation import Settings

TINY: dict[str, Any] = {"clips": 3, "frames": 4, "size": 16, "iterations": 3}
DP = "dp:noise_multiplier=0.1"
VLEAK = (sys.executable, "-c", "from vleak.cli import main; main()")


def tiny(**changes: Any) -> Settings:
    return Settings(**({**TINY, "defenses": (DP,)} | changes))


def options(**changes: Any) -> list[str]:
    """Return the command line of ``tiny``."""
    given = {**TINY, "defense": DP} | changes
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def without_time(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the cells by id without the one number that differs from run to run."""
    cells = json.loads(json.dumps(results["cells"]))
    for cell in cells:
        del cell["attack"]["seconds"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    return {cell["id"]: cell for cell in cells}


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start `vleak` in a process of its own, which hears Ctrl-C also where the tests run deaf to it."""
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + VLEAK[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def journal_length(folder: Path) -> int:
    path = folder / "cells.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
