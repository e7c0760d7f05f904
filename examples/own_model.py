"""A classifier and a frozen extractor of your own, attacked in the raw and in the feature pipeline."""

# --8<-- [start:model]
from __future__ import annotations

from torch import Tensor, nn

import vleak


def make_classifier(frames: int, size: int, classes: int) -> nn.Module:
    """3-D convolution and one linear layer: (N, 3, T, H, W) in [0, 1] to logits (N, classes)."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * (frames // 2) * (size // 2) ** 2, classes),
    )


# --8<-- [end:model]


# --8<-- [start:extractor]
class RandomFilters(nn.Module):
    """Frozen random filters and ReLU: segments (M, 3, 2, 16, 16) to features (M, 144), all at least 0."""

    segment_frames = 2
    nonnegative = True

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv3d(3, 16, (2, 5, 5), stride=4)
        self.requires_grad_(False)

    def forward(self, segments: Tensor) -> Tensor:
        return self.filters(segments).relu().flatten(1)


# --8<-- [end:extractor]

if __name__ == "__main__":
    # --8<-- [start:run]
    raw = vleak.evaluate(
        model=make_classifier, defenses=["dp:noise_multiplier=0.1"], clips=3, frames=4, size=16, iterations=40
    )
    features = vleak.evaluate(
        pipeline="feature",
        extractor=RandomFilters,
        head="mlp:width=16",
        defenses=["dp:noise_multiplier=0.1"],
        clips=3,
        frames=8,
        size=16,
        iterations=40,
    )

    for run in (raw, features):
        for row in run.rows:
            print(row.pipeline, row.model, row.defense, row.attack, f"{row.psnr_gain_db.mean:+.1f} dB")
    # --8<-- [end:run]
