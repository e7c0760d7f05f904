"""A 2-D CNN on every frame, and gated recurrent units over time (ICLR 2016, arXiv 1511.06432)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from vleak.models.classifiers import check_range
from vleak.models.networks.base import IMAGENET, Network, normalise_by

__all__ = ["CnnGru"]


class CnnGru(Network):
    """A 2-D CNN on every frame, the mean over its maps, and a GRU over time (arXiv 1511.06432).

    The convolutions are strided and normalised by batch; their number and widths are ours.
    """

    statistics = IMAGENET

    def __init__(
        self, frames: int, size: int, classes: int, *, width: int = 128, depth: int = 1, norm: str = "batch"
    ) -> None:
        """Build the layers for any number of frames, of any size.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            width: hidden units of the GRU; the three convolutions have a quarter, half and all as many
                channels.
            depth: layers of the GRU, 1 to 8.
            norm: "batch", or "group" for group normalisation, which `dp` needs.

        Raises:
            InputError: width or depth is out of range.
        """
        check_range("width", width, 4096, low=4)
        check_range("depth", depth, 8)
        super().__init__()
        channels = (3, width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layer = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [layer, nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.gru = nn.GRU(width, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, classes)
        normalise_by(self, norm)

    def forward(self, clips: Tensor) -> Tensor:
        """Return logits (N, classes) of clips (N, 3, T, H, W) in [0, 1]."""
        frames = self.normalised(clips).transpose(1, 2)  # (N, T, 3, H, W)
        features = self.features(frames.flatten(0, 1)).mean((2, 3)).unflatten(0, frames.shape[:2])
        sequence, _ = self.gru(features)
        logits: Tensor = self.head(sequence[:, -1])
        return logits
