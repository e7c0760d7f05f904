"""A small disk of one's own, as a file system that only the processes of one shell see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_OWN = ("unshare", "--user", "--map-root-user", "--mount")


def own_mounts() -> bool:
    """Tell whether this user may mount a file system that only its own processes see."""
    command = [*_OWN, "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


def on_small_disk(folder: Path, kilobytes: int, script: str) -> None:
    """Run a shell script in a folder with a disk of a size mounted at its sub-folder ``disk``.

    Raises:
        CalledProcessError: the last command failed.
    """
    (folder / "disk").mkdir()
    mounted = f"mount -t tmpfs -o size={kilobytes}k none disk || exit 9; {script}"
    subprocess.run([*_OWN, "sh", "-c", mounted], check=True, timeout=240, cwd=folder)
