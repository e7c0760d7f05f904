"""The command line in a process of its own, and what it leaves in a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from runs import VLEAK


def files(folder: Path) -> dict[str, int]:
    """Files below a folder with their times."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def vleak(*arguments: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run `vleak` to its end."""
    return subprocess.run([*VLEAK, *arguments], capture_output=True, text=True, timeout=120, **given)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process: its exit code, stdout and stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err
