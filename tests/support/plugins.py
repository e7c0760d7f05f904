"""Packages outside the tree, as an installer leaves them: a folder of the path with modules and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path, name: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]
) -> None:
    """Write modules and the metadata of a package into a folder of the path.

    Args:
        folder: as a package installer's target.
        name: of the package; its version is 1.2.
        modules: source text by name.
        points: ``package.module:object`` by name, by group.
    """
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
    metadata = folder / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in points.items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))
