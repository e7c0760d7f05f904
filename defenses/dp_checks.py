"""Checks of per-clip gradients for differential privacy: one a clip, of that clip alone.

Each check catches a way in which the guarantee becomes void without anything failing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vleak.errors import CapabilityError

Gradients = dict[str, Tensor]

# Honest float32 runs agree to 2e-6; wrong per-clip gradients of padded convolutions differ by 2e-2.
_TOLERANCE = 1e-3


def refuse_batch_norm(model: nn.Module, defense: str = "dp") -> None:
    """Refuse batch norm: in training it mixes the clips, so no clip has a gradient of its own.

    Args:
        model: that is trained. defense: name of the one that refuses.

    Raises:
        CapabilityError: names the first such layer and the remedy.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise CapabilityError(
                f"{defense}: layer {name or 'model'!r} is {type(module).__name__}, which mixes clips; use "
                "GroupNorm (opacus.validators.ModuleValidator.fix replaces it), and the same model for none "
                f"and {defense}"
            )


def check_one_per_clip(samples: Gradients, clips: int) -> None:
    """Check that each parameter has one finite gradient a clip, not one a frame.

    Args:
        samples: (M, *parameter shape) by name.
        clips: what M has to be.

    Raises:
        CapabilityError: names the parameter.
    """
    for name, sample in samples.items():
        if len(sample) != clips:
            raise CapabilityError(
                f"dp: {len(sample)} gradients of parameter {name!r} for {clips} clips: with time folded into "
                "the batch a clip counts several times; give one gradient a clip, over all its frames"
            )
        if not torch.isfinite(sample).all():
            raise CapabilityError(
                f"dp: a per-clip gradient of parameter {name!r} is not finite and cannot be clipped; "
                "check the model for overflow"
            )


def check_mean(samples: Gradients, plain: Gradients) -> None:
    """Check that the mean of the per-clip gradients is the gradient of the batch.

    Args:
        samples: (N, *parameter shape) by name.
        plain: parameter shape by name.

    Raises:
        CapabilityError: they differ by more than rounding.
    """
    gap = per_clip_norms({name: (samples[name].mean(0) - plain[name])[None] for name in plain}).item()
    scale = per_clip_norms(samples).mean().item()
    if not gap <= _TOLERANCE * scale:
        raise CapabilityError(
            f"dp: the mean of the per-clip gradients is not the gradient of the batch (off by {gap:.2g}, "
            f"mean norm {scale:.2g}): loss or model couples the clips, or is no mean over them; use a loss "
            "that is a mean over clips and a model without batch statistics"
        )


def check_independence(per_clip: Callable[[Tensor], Gradients], samples: Gradients, clips: Tensor) -> None:
    """Check that changing other clips leaves a clip's gradient as it is.

    Half of the clips are changed at a time, so that for every pair one round changes the one and keeps the
    other: 2 log2(N) evaluations, none for a single clip.

    Args:
        per_clip: per-clip gradients for clips of the same labels.
        samples: its result for ``clips``.
        clips: (N, C, T, H, W) in [0, 1], or features (N, ...) of any range.

    Raises:
        CapabilityError: names the clip whose gradient moved.
    """
    norms = per_clip_norms(samples)
    allowed = _TOLERANCE * norms + 1e-6 * norms.max()
    index = torch.arange(len(clips), device=clips.device)
    for bit in range((len(clips) - 1).bit_length()):
        for side in (0, 1):
            kept = (index >> bit) & 1 == side
            mask = kept.reshape(-1, *[1] * (clips.dim() - 1))
            altered = torch.where(mask, clips, _changed(clips))
            again = per_clip(altered)
            moved = per_clip_norms({name: again[name] - samples[name] for name in samples})
            coupled = kept & ~(moved <= allowed)
            if coupled.any():
                first = int(coupled.nonzero()[0])
                raise CapabilityError(
                    f"dp: the gradient of clip {first} changed when other clips did, so clipping it does not "
                    "bound their influence; use a loss that treats clips apart, or make the group the unit"
                )


def _changed(clips: Tensor) -> Tensor:
    """Return clips of the same kind that differ from these in every entry."""
    if clips.dim() == 5:
        return (clips + 0.5) % 1  # half a cycle of grey away, in [0, 1)
    largest = clips.abs().max()
    return clips + torch.where(largest > 0, largest, 1.0) / 2


def per_clip_norms(samples: Gradients) -> Tensor:
    """Return the Euclidean norm over all parameters of each clip's gradient: (N,) float64."""
    norms = [
        torch.linalg.vector_norm(sample.reshape(len(sample), -1), dim=1, dtype=torch.float64)
        for sample in samples.values()
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total
