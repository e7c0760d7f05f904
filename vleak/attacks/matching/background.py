"""Background in gradient matching: frames of the scene held still, and where a clip differs from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.expectation import FEW_FRAMES, background

__all__ = ["BackgroundModel", "moving_mask", "still_backgrounds", "without_covered_texture"]


def still_backgrounds(references: Tensor) -> list[Tensor]:
    """Return what an attacker may take for the scene held still, each (B, C, 1, H, W).

    The mean of the frames, the nearest of them, and their background; of one frame that frame alone.
    """
    if references.shape[2] == 1:
        return [references]
    stills = [references.mean(2, keepdim=True), references[:, :, :1]]
    return stills if references.shape[2] < FEW_FRAMES else [*stills, background(references)]


def moving_mask(clips: Tensor, still: Tensor) -> Tensor:
    """Return where rebuilt clips differ from their background, (B, 1, T, H, W) of 0 and 1.

    The difference, averaged over 3x3x3 pixels, against Otsu's threshold (IEEE Trans. SMC 9, 1979) of each
    clip's own differences; grown by a pixel, for edges are the last to be rebuilt.

    Args:
        clips: (B, C, T, H, W), as rebuilt so far.
        still: (B, C, 1, H, W), the background.
    """
    gaps = F.avg_pool3d((clips - still).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    limits = torch.stack([_otsu(gap.flatten()) for gap in gaps]).view(-1, 1, 1, 1, 1)
    return F.max_pool3d((gaps > limits).to(clips), (1, 3, 3), 1, (0, 1, 1))


def _otsu(values: Tensor) -> Tensor:
    """Return the value that divides (N,) values into the two classes of the least variance within."""
    ordered = values.sort().values.double()
    below, count = (
        ordered.cumsum(0)[:-1],
        torch.arange(1, len(ordered), dtype=torch.float64, device=values.device),
    )
    rest = len(ordered) - count
    between = count * rest * (below / count - (ordered.sum() - below) / rest).square()
    return ordered[int(between.argmax())].to(values)


def without_covered_texture(clips: Tensor, still: Tensor, mask: Tensor) -> Tensor:
    """Return the background without its texture where something covers it, (B, C, T, H, W).

    The background, and the rebuilt clips averaged over 7x7 pixels where the mask is 1 and, in such a square,
    they are nearer to that average than to the background: what moves there need not first undo the
    background's texture. Where they still show it, as a slight motion does and whatever noise leaves
    undecided, it stays: to take it out there is to throw the prior away.

    Args:
        clips: (B, C, T, H, W), as rebuilt so far.
        still: (B, C, 1, H, W), the background.
        mask: (B, 1, T, H, W), 1 where something moves.
    """
    rough = _local_mean(clips)
    covered = _local_mean((clips - rough).square().mean(1, keepdim=True)) < _local_mean(
        (clips - still).square().mean(1, keepdim=True)
    )
    return torch.where((mask > 0) & covered, rough, still)


def _local_mean(values: Tensor) -> Tensor:
    """Return the mean over 7x7 pixels of each frame, fewer at the border."""
    return F.avg_pool3d(values, (1, 7, 7), 1, (0, 3, 3), count_include_pad=False)


class BackgroundModel(nn.Module):
    """A model of clips, of which it takes the difference from a background, in units that vary by pixel."""

    def __init__(self, model: nn.Module, background: Tensor, unit: Tensor) -> None:
        """Take the model, the background and the unit.

        Args:
            model: takes clips (B, C, T, H, W).
            background: (B, C, T, H, W), or one frame (B, C, 1, H, W).
            unit: (B, 1, T, H, W) above 0, how far a pixel may stray.
        """
        super().__init__()
        self.model = model
        self.register_buffer("background", background)
        self.register_buffer("unit", unit)

    def compose(self, differences: Tensor) -> Tensor:
        """Return the clips (B, C, T, H, W) of such differences."""
        return self.get_buffer("background") + self.get_buffer("unit") * differences

    def decompose(self, clips: Tensor) -> Tensor:
        """Return the differences of such clips."""
        return (clips - self.get_buffer("background")) / self.get_buffer("unit")

    def forward(self, differences: Tensor) -> Tensor:
        """Return the model's output for the composed clips."""
        logits: Tensor = self.model(self.compose(differences))
        return logits
