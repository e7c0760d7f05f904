"""Tiny evaluations that several test files run and compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from evaluations import timeless

from vleak.evaluation import Settings
from vleak.results import Cell, RunRecord

TINY: dict[str, Any] = {
    "clips": 3, "frames": 4, "size": 16, "iterations": 3, "audit_draws": 0, "non_adaptive": 0,
}  # fmt: skip
DP = "dp:noise_multiplier=0.1"
VLEAK = (sys.executable, "-c", "from vleak.cli import main; main()")


def tiny(**changes: Any) -> Settings:
    """Return settings of a tiny run by one attack, as the default one tries several first."""
    return Settings(**({**TINY, "defenses": (DP,), "attacks": ("matching",)} | changes))


def options(**changes: Any) -> list[str]:
    """Return the command line of ``tiny``."""
    given = {**TINY, "defense": DP, "attack": "matching"} | changes
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def without_time(record: RunRecord) -> dict[str, Cell]:
    """Cells by id without the times, which differ from run to run."""
    return timeless(record)


def start(arguments: list[str], folder: Path, before: str = "") -> subprocess.Popen[str]:
    """Start `vleak` in a process of its own, which hears Ctrl-C also where the tests run deaf to it."""
    script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {before}{VLEAK[2]}"
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
