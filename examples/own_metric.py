"""A metric of your own: how many of the edges come back."""

# --8<-- [start:metric]
from __future__ import annotations

import torch
from torch import Tensor

import vleak
from vleak.metrics import Metric


class Edges(Metric):
    """Correlation of the differences between neighbouring pixels; None where one clip has none."""

    name = "edges"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:  # both (C, T, H, W) in [0, 1]
        pair = torch.stack([clip.diff(dim=-1).flatten() for clip in (reconstruction, truth)])
        return float(torch.corrcoef(pair)[0, 1]) if bool((pair.var(1) > 0).all()) else None


# --8<-- [end:metric]

if __name__ == "__main__":
    # --8<-- [start:run]
    run = vleak.evaluate(
        defenses=["dp:noise_multiplier=0.01"],
        metrics=[Edges()],
        clips=3,
        frames=4,
        size=16,
        iterations=40,
    )
    for cell in run.cells:
        value = cell.scores.metrics["edges"]
        print(cell.defense.label, cell.attack.name, cell.clip, "flat" if value is None else f"{value:+.2f}")
    # --8<-- [end:run]
