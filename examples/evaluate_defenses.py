"""Evaluation of several defenses from Python, in memory, and its rows and cells."""

# --8<-- [start:run]
from __future__ import annotations

import vleak

run = vleak.evaluate(
    defenses=["dp:noise_multiplier=0.1", "prune:fraction=0.9"],  # "none" always runs beside them
    clips=4,
    frames=4,
    size=16,
    iterations=40,
)

for row in run.rows:  # one row a defense and attack, over all clips
    gain = row.psnr_gain_db.mean
    print(
        f"{row.defense}, {row.attack}: {gain:+.1f} dB, {row.identified} of {row.n} recognised, {row.verdict}"
    )

worst = max(run.cells, key=lambda cell: cell.scores.psnr_gain_db)  # one cell a clip, defense and attack
print(f"clip {worst.clip} leaks most: {worst.scores.psnr_db:.1f} dB, defense {worst.defense.label}")
# --8<-- [end:run]
