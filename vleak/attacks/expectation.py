"""Expectation of the private clips before the update is looked at: from public clips and reference frames."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.knowledge import Knowledge

FEW_FRAMES = 3
"""Frames below which a median means nothing."""


def background(references: Tensor) -> Tensor:
    """Return what stands still in reference frames (B, C, K, H, W), (B, C, 1, H, W).

    The median over three frames or more is rid of what is elsewhere in most of them; of fewer the first,
    which is nearest to the clip.
    """
    if references.shape[2] < FEW_FRAMES:
        return references[:, :, :1]
    return references.quantile(0.5, dim=2, keepdim=True)


def expected_clips(knowledge: Knowledge) -> Tensor | None:
    """Return the clips to be expected, (B, *clip_shape), or None where nothing is known of them.

    The background held still where there are reference frames, else the mean public clip.
    """
    if knowledge.references is not None:
        return background(knowledge.references).expand(knowledge.batch_shape)
    mean = knowledge.public_mean()
    return None if mean is None else mean.expand(knowledge.batch_shape)


def expected_clip(knowledge: Knowledge) -> Tensor:
    """Return one clip to be expected without reference frames, of ``clip_shape``.

    The public mean; without one grey frames, equal features of norm 1 where both facts are known, or zeros.
    """
    mean = knowledge.public_mean()
    if mean is not None:
        return mean
    if not knowledge.of_features:
        return torch.full(knowledge.clip_shape, 0.5)
    level = knowledge.clip_shape[-1] ** -0.5 if knowledge.nonnegative and knowledge.unit_norm else 0.0
    return torch.full(knowledge.clip_shape, level)


def prior_answer(knowledge: Knowledge) -> Tensor:
    """Return the best answer without the update, (B, *clip_shape): `expected_clips`, else `expected_clip`."""
    expected = expected_clips(knowledge)
    return expected_clip(knowledge).expand(knowledge.batch_shape) if expected is None else expected


def expected_variance(knowledge: Knowledge) -> float:
    """Return how far a pixel strays from `expected_clips`, as the mean square that the attacker can tell.

    Without reference frames that of public clips about their mean. With them the largest of: how far the
    frames of public clips stray from their own first one by the last, and reference frames from the
    background; where there is neither, as if the frame told nothing, 1/12.
    """
    references, public = knowledge.references, knowledge.public_clips
    if references is None:
        return knowledge.public_variance()
    variances = []
    if references.shape[2] > 1:
        variances.append(
            float((references - background(references)).square().sum(2).mean()) / (references.shape[2] - 1)
        )
    if public is not None and len(public) and public.shape[2] > 1:
        variances.append(float((public[:, :, -1] - public[:, :, 0]).square().mean()))
    return max(*variances, 1e-6) if variances else 1 / 12
