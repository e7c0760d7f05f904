"""Video models of torchvision, an optional package: which there are, and as classifiers of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import CapabilityError, InputError
from vleak.models.classifiers import check_range

__all__ = ["VIDEO_MODELS", "TorchvisionModel", "video_models"]

#: name -> attribute of the classification layer, and whether its input is rectified.
VIDEO_MODELS: dict[str, tuple[str, bool]] = {
    "r3d_18": ("fc", True),
    "mc3_18": ("fc", True),
    "r2plus1d_18": ("fc", True),
    "s3d": ("classifier", True),
    "swin3d_t": ("head", False),
    "swin3d_s": ("head", False),
    "swin3d_b": ("head", False),
    "mvit_v1_b": ("head", False),
    "mvit_v2_s": ("head", False),
}
_SIDE, _FRAMES = ("s3d", "mvit_v1_b", "mvit_v2_s"), ("mvit_v1_b", "mvit_v2_s")
"""Models that take frames of one height and width alone, and those that take one number of frames."""


@dataclass(frozen=True)
class TorchvisionModel:
    """Video model of torchvision (optional), its weights drawn here; S3D and MViT resize the frames.

    Clips are normalised by a hook, so that parameters keep torchvision's names and its checkpoints fit.

    Attributes:
        architecture: a key of ``VIDEO_MODELS``.
    """

    architecture: str

    def __call__(self, frames: int, size: int, classes: int, *, side: int = 0) -> nn.Module:
        """Return the classifier; its weights come from the generator of the process, see `drawing`.

        Args:
            frames, size: T, and height and width, of the clips.
            classes: number of logits.
            side: height and width that frames are resized to; 0 for as they are where the model takes
                that, otherwise for those of its training.

        Raises:
            InputError: side is out of range, or the model takes another number of frames.
            CapabilityError: torchvision cannot be imported.
        """
        check_range("side", side, 1024, low=0)
        what = f"model 'torchvision:{self.architecture}'"
        models = video_models(what)
        weights = models.get_model_weights(self.architecture).DEFAULT
        wanted = weights.meta.get("min_temporal_size", 16)
        if self.architecture in _FRAMES and frames != wanted:
            raise InputError(f"{what} takes {wanted} frames, got {frames}; choose frames={wanted}")
        model: nn.Module = models.get_model(self.architecture, weights=None, num_classes=classes)
        preset = weights.transforms()
        for name, values in (("clip_mean", preset.mean), ("clip_std", preset.std)):
            model.register_buffer(name, torch.tensor(values).view(3, 1, 1, 1), persistent=False)
        if not side and self.architecture in _SIDE:
            side = int(preset.crop_size[0])
        model.register_forward_pre_hook(_Prepare(side))
        return model


@dataclass(frozen=True)
class _Prepare:
    """Hook before a forward pass: clips in [0, 1] as the model takes them; `side` is 0 for no resizing."""

    side: int

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        clips = arguments[0]
        size = (clips.shape[2], self.side, self.side)
        if self.side and tuple(clips.shape[2:]) != size:
            clips = F.interpolate(clips, size, mode="trilinear", align_corners=False)
        return ((clips - module.get_buffer("clip_mean")) / module.get_buffer("clip_std"),)


def video_models(what: str) -> Any:
    """Return the module ``torchvision.models``.

    Args:
        what: what needs it, such as "model 'torchvision:r3d_18'".

    Raises:
        CapabilityError: it cannot be imported.
    """
    try:
        import torchvision.models as models
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        why = str(error).strip().partition("\n")[0]
        raise CapabilityError(
            f"{what} needs torchvision, which cannot be imported ({why}); install the one that belongs to "
            "your torch: pip install torchvision"
        ) from error
    return models
