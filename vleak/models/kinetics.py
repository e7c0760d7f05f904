"""Video models of torchvision as extractors: trained on Kinetics, without their classification layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import InputError
from vleak.models.classifiers import check_range
from vleak.models.torchvision_video import VIDEO_MODELS, video_models


class KineticsNet(nn.Module):
    """Feature network: a video model of torchvision, trained on Kinetics-400, on segments of 16 frames.

    Frames are resized and normalised to the size, mean and standard deviation of its training.
    """

    unit_norm = False
    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, size: int, *, segment_frames: int = 16, weights: str = "") -> None:
        """Build the architecture and load weights; nothing is downloaded.

        Args:
            architecture: a key of ``VIDEO_MODELS``.
            size: height and width of the frames.
            segment_frames: frames a segment; the MViT take 16 only.
            weights: a file with a state dict of the architecture; "" for torchvision's own weights, from
                its cache.

        Raises:
            InputError: the file is not there or is no state dict of the architecture.
            CapabilityError: torchvision cannot be imported.
        """
        check_range("segment_frames", segment_frames, 64)
        super().__init__()
        self.segment_frames = segment_frames
        layer, self.nonnegative = VIDEO_MODELS[architecture]
        models = video_models(f"extractor 'torchvision.{architecture}'")
        known = models.get_model_weights(architecture).DEFAULT
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            self.model: nn.Module = models.get_model(architecture, weights=None)
        _load(self.model, architecture, weights, known.url)
        setattr(self.model, layer, nn.Identity())
        preset = known.transforms()
        self.side = int(preset.crop_size[0])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preset, name))[:, None, None, None])

    def forward(self, segments: Tensor) -> Tensor:
        """Return features (M, F) of segments (M, 3, T, H, W) in [0, 1]."""
        size = (segments.shape[2], self.side, self.side)
        if segments.shape[2:] != size:
            segments = F.interpolate(segments, size, mode="trilinear", align_corners=False)
        features: Tensor = self.model((segments - self.mean) / self.std)
        return features


def _load(model: nn.Module, architecture: str, weights: str, url: str) -> None:
    """Load a state dict into the model, from a file or from torchvision's cache."""
    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    name = f"extractor 'torchvision.{architecture}'"
    if not path.is_file():
        remedy = (
            "give a file with its state dict" if weights
            else f"download {url} to it, or give a state dict with weights=FILE"
        )  # fmt: skip
        raise InputError(f"{name}: there are no weights at {path}; {remedy}")
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # an untrusted file can raise any error
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{name}: {path} holds no state dict of it ({first}); download {url}, or save model.state_dict()"
        ) from error
