"""A metric of your own: how much of the picture's brightness over time comes back."""

# --8<-- [start:metric]
from __future__ import annotations

import torch
from torch import Tensor

import vleak
from vleak.metrics import Metric


class Brightness(Metric):
    """Correlation of the mean brightness of the frames, None where it is constant."""

    name = "brightness"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:  # both (C, T, H, W)
        pair = torch.stack([clip.mean((0, 2, 3)) for clip in (reconstruction, truth)])
        return float(torch.corrcoef(pair)[0, 1]) if bool((pair.var(1) > 0).all()) else None


# --8<-- [end:metric]

# --8<-- [start:run]
run = vleak.evaluate(
    defenses=["dp:noise_multiplier=0.1"],
    metrics=[Brightness()],
    clips=3,
    frames=4,
    size=16,
    iterations=40,
)
for cell in run.cells:
    value = cell.scores.metrics["brightness"]
    print(cell.defense.label, cell.attack.name, cell.clip, "constant" if value is None else f"{value:+.2f}")
# --8<-- [end:run]
