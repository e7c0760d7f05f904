"""A run that is saved, stopped or not, and read again: cells, pictures, table, page."""

# --8<-- [start:run]
from __future__ import annotations

import tempfile
from pathlib import Path

import vleak

with tempfile.TemporaryDirectory() as folder:
    vleak.evaluate(
        defenses=["dp:noise_multiplier=0.1"], clips=3, frames=4, size=16, iterations=40, out=folder
    )

    run = vleak.load_run(folder)  # or the path of a results.json
    print(f"{len(run.cells)} cells, vleak {run.record.environment.vleak}, schema {run.record.schema_version}")

    for cell in run.cells:
        if not cell.attack.baseline:
            pictures = run.pictures(cell)  # float32 in [0, 1], (C, T, H, W)
            error = (pictures["reconstruction"] - pictures["truth"]).abs().mean()
            print(
                f"{cell.clip} behind {cell.defense.label}: mean error {error:.2f}, {cell.update.bytes} bytes"
            )

    page = run.report(Path(folder) / "again.html")
    print(f"{page.name}: {page.stat().st_size // 1024} KiB, nothing to download")
# --8<-- [end:run]
