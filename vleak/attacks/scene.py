"""What frames of the scene tell without the update: what stands still, and where a clip differs from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks.base import Knowledge

_FEW = 3  # frames below which a median is none


def background(references: Tensor) -> Tensor:
    """Return what stands still in reference frames (B, C, K, H, W), (B, C, 1, H, W).

    The median over three frames or more is rid of what is elsewhere in most of them; of fewer the first,
    which is nearest to the clip.
    """
    if references.shape[2] < _FEW:
        return references[:, :, :1]
    return references.quantile(0.5, dim=2, keepdim=True)


def still_scenes(references: Tensor) -> list[Tensor]:
    """Return what an attacker may take for the scene held still, each (B, C, 1, H, W).

    The mean of the frames, the nearest of them, and their background; of one frame that frame alone.
    """
    if references.shape[2] == 1:
        return [references]
    scenes = [references.mean(2, keepdim=True), references[:, :, :1]]
    return scenes if references.shape[2] < _FEW else [*scenes, background(references)]


def expected_clips(knowledge: Knowledge) -> Tensor | None:
    """Return what the attacker expects of the clips before he looks at the update, (B, *clip_shape).

    The background held still where there are reference frames, else the mean public clip, or None.
    """
    if knowledge.references is not None:
        return background(knowledge.references).expand(knowledge.batch_shape)
    mean = knowledge.public_mean()
    return None if mean is None else mean.expand(knowledge.batch_shape)


def expected_variance(knowledge: Knowledge) -> float:
    """Return how far a pixel strays from `expected_clips`, as the mean square that the attacker can tell.

    Without reference frames that of public clips about their mean. With them the largest of: how far the
    frames of public clips stray from their own first one by the last, and reference frames from the
    background; where there is neither, as if the frame told nothing, 1/12.
    """
    references, public = knowledge.references, knowledge.public_clips
    if references is None:
        return knowledge.public_variance()
    found = []
    if references.shape[2] > 1:
        found.append(
            float((references - background(references)).square().sum(2).mean()) / (references.shape[2] - 1)
        )
    if public is not None and len(public) and public.shape[2] > 1:
        found.append(float((public[:, :, -1] - public[:, :, 0]).square().mean()))
    return max(*found, 1e-6) if found else 1 / 12


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


def empty_stage(clips: Tensor, still: Tensor, mask: Tensor) -> Tensor:
    """Return what a scene would be without detail where something covers it, (B, C, T, H, W).

    The background, and the rebuilt clips averaged over 7x7 pixels where the mask is 1 and, in such a square,
    they are nearer to that average than to the background: what moves there need not first undo the
    background's texture. Where they still show it, as a slight motion does and whatever noise leaves
    undecided, it stays: to take it out there is to throw the prior away.
    """
    rough = _around(clips)
    covered = _around((clips - rough).square().mean(1, keepdim=True)) < _around(
        (clips - still).square().mean(1, keepdim=True)
    )
    return torch.where((mask > 0) & covered, rough, still)


def _around(values: Tensor) -> Tensor:
    """Return the mean over 7x7 pixels of each frame, fewer at the border."""
    return F.avg_pool3d(values, (1, 7, 7), 1, (0, 3, 3), count_include_pad=False)


class Before(nn.Module):
    """A model behind a scene: it takes differences from it, in units that say how far a pixel may stray."""

    def __init__(self, model: nn.Module, scene: Tensor, unit: Tensor) -> None:
        """Take the scene (B, C, T, H, W), or one frame (B, C, 1, H, W), and the unit (B, 1, T, H, W) > 0."""
        super().__init__()
        self.model = model
        self.register_buffer("scene", scene)
        self.register_buffer("unit", unit)

    def compose(self, differences: Tensor) -> Tensor:
        """Return the clips (B, C, T, H, W) of such differences."""
        return self.get_buffer("scene") + self.get_buffer("unit") * differences

    def decompose(self, clips: Tensor) -> Tensor:
        """Return the differences that make such clips."""
        return (clips - self.get_buffer("scene")) / self.get_buffer("unit")

    def forward(self, differences: Tensor) -> Tensor:
        """Return what the model says of the composed clips."""
        logits: Tensor = self.model(self.compose(differences))
        return logits
