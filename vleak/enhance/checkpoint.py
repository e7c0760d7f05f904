"""Enhancement by a user's checkpoint, of any architecture that `spandrel` supports.

`spandrel` is installed by the extra ``vleak[spandrel]``; it is imported only when a checkpoint is used.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from vleak.enhance.base import Enhanced, checked
from vleak.enhance.classical import estimate_noise
from vleak.errors import CapabilityError, InputError

SUFFIXES = (".pth", ".ckpt", ".safetensors")
"""Suffixes of files that are loaded as tensors only. A ``.pt`` may hold a program, which `spandrel` would
load; it is rejected."""


def build_checkpoint(path: str, scale: int = 2) -> Callable[[Tensor], Enhanced]:
    """Return the enhancer of a checkpoint; it processes single frames and resizes them to the scale.

    Args:
        path: path of the file.
        scale: factor for width and height, which may differ from the model's own scale.

    Raises:
        InputError: no such file, not one of ``SUFFIXES``, or no model of images with one or three channels.
        CapabilityError: `spandrel` is not installed, or not with a torchvision that fits torch.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"spandrel: {file.name!r} does not end in {', '.join(SUFFIXES)}; give such a checkpoint"
        )
    if not file.is_file():
        raise InputError(f"spandrel: there is no file {path!r}; give the path of a checkpoint")
    model = _load(file)
    lock = threading.Lock()  # loaded modules may keep state between calls, and pad in place

    def run(clip: Tensor) -> Enhanced:
        coarse = checked(clip, scale)
        with lock:
            frames = [_frame(model, frame) for frame in coarse.unbind(1)]
        size = [scale * side for side in coarse.shape[2:]]
        fine = torch.stack(frames, 1)
        steps: tuple[str, ...] = (f"spandrel {model.architecture.name} x{model.scale}",)
        if list(fine.shape[2:]) != size:
            fine, steps = _resized(fine, size), (*steps, "bicubic")
        return Enhanced(fine.clamp(0, 1), estimate_noise(coarse), steps)

    return run


def _load(file: Path) -> Any:
    spandrel = _spandrel()
    try:
        model = spandrel.ModelLoader(device="cpu").load_from_file(file)
    except spandrel.UnsupportedModelError as error:
        raise InputError(
            f"spandrel: {file.name!r} holds no architecture that spandrel knows; give another checkpoint"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise InputError(
            f"spandrel: {file.name!r} is damaged or holds more than tensors ({_line(error)}); "
            "give a checkpoint of weights"
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"spandrel: {file.name!r} cannot be loaded ({_line(error)}); give another checkpoint"
        ) from error
    pictures = isinstance(model, spandrel.ImageModelDescriptor) and model.purpose in ("SR", "Restoration")
    if not pictures or (model.input_channels, model.output_channels) not in ((1, 1), (3, 3)):
        raise InputError(
            f"spandrel: {file.name!r} is a {model.architecture.name} that does not enlarge or restore grey "
            "or RGB images; give a model for super-resolution or restoration"
        )
    model.eval().float()
    return model


def _spandrel() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the packages that it imports
            import spandrel
    except ImportError as error:
        raise CapabilityError(
            f"spandrel: {_line(error)}; pip install 'vleak[spandrel]' to use a checkpoint"
        ) from error
    except RuntimeError as error:  # a torchvision built for another torch lacks operators
        raise CapabilityError(
            f"spandrel: torchvision does not fit the installed torch ({_line(error)}); install the "
            f"torchvision that belongs to torch {torch.__version__}"
        ) from error
    return spandrel


def _frame(model: Any, frame: Tensor) -> Tensor:
    """Return the model's output for a frame (C, H, W); a one-channel model processes single channels."""
    if len(frame) not in (1, 3) and model.input_channels == 3:
        raise InputError(
            f"spandrel: the checkpoint takes images of 3 channels, the clip has {len(frame)}; give another"
        )
    images = frame[:, None, None] if model.input_channels == 1 else frame.expand(3, -1, -1)[None, None]
    # The model may run in inference mode; its tensors are cloned so that they can be used anywhere.
    outputs = torch.cat([model(image.contiguous()).clone() for image in images])
    if model.input_channels == 1:
        return outputs[:, 0]
    return outputs[0] if len(frame) == 3 else outputs[0].mean(0, keepdim=True)


def _resized(clip: Tensor, size: list[int]) -> Tensor:
    """Return the frames of a clip (C, T, h, w) resized."""
    frames = functional.interpolate(
        clip.transpose(0, 1), size, mode="bicubic", antialias=True, align_corners=False
    )
    return frames.transpose(0, 1)


def _line(error: BaseException) -> str:
    """Return an error's first line, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
