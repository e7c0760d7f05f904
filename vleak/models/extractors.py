"""Frozen extractors: clips (N, 3, T, H, W) in [0, 1] to feature matrices (N, S, F), one row a segment.

A feature network maps segments (M, 3, segment_frames, H, W) to (M, F) and states the public properties of its
features as attributes; an `Extractor` cuts clips into segments and keeps the network frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.cache import Recipe, cached_tensors
from vleak.errors import InputError
from vleak.models.build import build_module, on_trial
from vleak.models.classifiers import check_range, halved
from vleak.models.kinetics import KineticsNet
from vleak.models.torchvision_video import VIDEO_MODELS
from vleak.registry import Reference, Registry
from vleak.seeds import generator

__all__ = ["EXTRACTORS", "Extractor", "build_extractor", "pretrained", "train_extractor"]

#: Fixed settings of `train_extractor`: steps, clips a step, initial learning rate of Adam, held-out share.
STEPS, BATCH, RATE, HELD_OUT = 200, 32, 1e-3, 0.2


class C3DSmall(nn.Module):
    """Feature network: a small 3-D CNN on segments of two frames; features are at least 0 and have norm 1.

    The features are rectified, then normalised to Euclidean norm 1, like the C3D features that anomaly
    detectors are trained on (Sultani et al., CVPR 2018, arXiv 1801.04264).
    """

    nonnegative, unit_norm = True, True

    def __init__(self, size: int, *, segment_frames: int = 2, features: int = 256) -> None:
        """Build the layers for frames (3, size, size).

        Args:
            size: height and width of the frames.
            segment_frames: frames a segment, 2 to 16.
            features: F.

        Raises:
            InputError: a setting is out of range.
        """
        check_range("segment_frames", segment_frames, 16, low=2)
        check_range("features", features, 4096)
        super().__init__()
        self.segment_frames, self.features = segment_frames, features
        self.layers = nn.Sequential(
            nn.Conv3d(3, 16, 3, stride=(1, 2, 2), padding=1),
            nn.ReLU(),
            nn.Conv3d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * halved(segment_frames, 2) * halved(size, 3) ** 2, features),
            nn.ReLU(),
        )

    def activations(self, segments: Tensor) -> Tensor:
        """Return features (M, F), at least 0 and of any norm, of segments (M, 3, T, H, W) in [0, 1]."""
        activations: Tensor = self.layers(segments * 2 - 1)
        return activations

    def forward(self, segments: Tensor) -> Tensor:
        """Return features (M, F) of norm 1 of segments (M, 3, T, H, W) in [0, 1]."""
        return F.normalize(self.activations(segments), dim=1)


class FrameCNN(nn.Module):
    """Feature network: a small CNN on single frames; its features are at least 0."""

    nonnegative, unit_norm = True, False
    segment_frames = 1

    def __init__(self, size: int, *, features: int = 256) -> None:
        """Build the layers for frames (3, size, size); `features` is F.

        Raises:
            InputError: a setting is out of range.
        """
        check_range("features", features, 4096)
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * halved(size, 3) ** 2, features),
            nn.ReLU(),
        )

    def activations(self, segments: Tensor) -> Tensor:
        """See `forward`."""
        activations: Tensor = self.layers(segments[:, :, 0] * 2 - 1)
        return activations

    def forward(self, segments: Tensor) -> Tensor:
        """Return features (M, F) of segments (M, 3, 1, H, W) in [0, 1]."""
        return self.activations(segments)


EXTRACTORS: Registry[nn.Module] = Registry(
    "extractor",
    {
        "c3d_small": C3DSmall,
        "frame_cnn": FrameCNN,
        **{f"torchvision.{name}": partial(KineticsNet, name) for name in VIDEO_MODELS},
    },
)
"""Feature networks; the built-in ones are called with (size), torchvision's bring trained weights."""


class Extractor(nn.Module):
    """Extractor: a frozen feature network, applied to every segment of a clip. It stays in eval mode.

    Attributes:
        net: maps segments (M, 3, segment_frames, H, W) in [0, 1] to features (M, F).
        segment_frames: frames a segment.
        features: F.
        nonnegative: whether every feature is at least 0.
        unit_norm: whether the features of every segment have Euclidean norm 1.
    """

    def __init__(self, net: nn.Module, features: int) -> None:
        """Take a net with the attribute ``segment_frames``, and freeze it; `features` is F."""
        super().__init__()
        facts = cast("_Facts", net)
        self.segment_frames, self.features = facts.segment_frames, features
        self.nonnegative = bool(getattr(net, "nonnegative", False))
        self.unit_norm = bool(getattr(net, "unit_norm", False))
        self.net = net
        if next(net.parameters(), None) is None:  # marks the device of a network without weights
            self.placement = nn.Parameter(torch.zeros(()))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Extractor:
        """Stay in eval mode, the only mode of a frozen network."""
        super().train(False)
        return self

    def segments(self, clips: Tensor) -> Tensor:
        """Cut clips (N, C, T, H, W) into (N * S, C, segment_frames, H, W), clip after clip.

        Raises:
            InputError: T is no multiple of ``segment_frames``.
        """
        if clips.ndim != 5 or clips.shape[2] % self.segment_frames:
            raise InputError(
                f"extractor: expected clips (clip, channel, frame, height, width) with a multiple of "
                f"{self.segment_frames} frames, got {tuple(clips.shape)}; choose `frames` that fit it"
            )
        batch, channels, _, *size = clips.shape
        cut = clips.reshape(batch, channels, -1, self.segment_frames, *size)
        return cut.transpose(1, 2).flatten(0, 1)

    def forward(self, clips: Tensor) -> Tensor:
        """Return features (N, S, F) of clips (N, C, T, H, W) in [0, 1], S = T / segment_frames.

        Raises:
            InputError: T is no multiple of ``segment_frames``.
        """
        features: Tensor = self.net(self.segments(clips))
        return features.reshape(len(clips), -1, self.features)


class _Facts(Protocol):
    segment_frames: int


def build_extractor(name: str, *, size: int, frames: int, seed: int) -> Extractor:
    """Return a frozen extractor on the CPU; built-in ones get freshly drawn weights, see `pretrained`.

    Args:
        name: a name of ``EXTRACTORS``, optionally with settings, such as ``c3d_small:features=64`` or
            ``torchvision.r3d_18:weights=FILE``; or ``package.module:factory``. A factory of a plug-in is
            called with its settings and those of ``size`` and ``frames`` that it accepts, and returns a
            frozen module from segments (M, 3, segment_frames, size, size) to features (M, F) with the
            attribute ``segment_frames``, and ``nonnegative`` or ``unit_norm`` where that is true.
        size: height and width of the clips.
        frames: T of the clips, a multiple of ``segment_frames``.
        seed: drawn weights depend on this number and on the name alone.

    Raises:
        InputError: the name or a setting is unknown, weights are not available, a factory's module is
            not frozen or does not accept the segments, or frames is no multiple of ``segment_frames``.
        CapabilityError: torchvision is needed and cannot be imported.
    """

    def make() -> nn.Module:
        reference = EXTRACTORS.parse(name)
        if _is_torchvision(reference):
            return reference.build(size)
        arguments = {"size": size, "frames": frames}
        net = build_module(reference, (size,), arguments, seed, "extractor weights")
        if not reference.entry.built_in:
            _check_net(name, net)
        return net

    return _wrapped(name, on_trial(EXTRACTORS, name, make), frames, size)


def wrap_extractor(name: str, net: nn.Module, *, size: int, frames: int) -> Extractor:
    """Return the extractor of a user's module.

    Args:
        name: name in messages.
        net: frozen module from segments (M, 3, segment_frames, size, size) to features (M, F), with the
            attribute ``segment_frames``, and ``nonnegative`` or ``unit_norm`` where that is true.
        size, frames: of the clips.

    Raises:
        InputError: it is not frozen, does not accept the segments, or frames is no multiple of their length.
    """
    _check_net(name, net)
    return _wrapped(name, net, frames, size)


def train_extractor(
    extractor: Extractor, clips: Tensor, labels: Tensor, generator: torch.Generator, *, steps: int = STEPS
) -> float:
    """Train a built-in extractor in place to classify clips, freeze it again, and return its accuracy.

    A linear layer on the features of all segments in their order is trained with it and dropped, so that a
    network of single frames learns positions as well.

    Args:
        extractor: as `build_extractor` returns it for "c3d_small" or "frame_cnn".
        clips: (M, 3, T, H, W) in [0, 1], never those of an evaluation; the last fifth is held out.
        labels: (M,) int64, classes in any order.
        generator: draws the batches and the weights of the linear layer.
        steps: optimiser steps.

    Returns:
        the accuracy on the clips held out.

    Raises:
        InputError: it is another extractor, or there are fewer than ten clips.
    """
    net = extractor.net
    if not isinstance(net, C3DSmall | FrameCNN):
        raise InputError("extractor: only c3d_small and frame_cnn are trained here; bring others trained")
    if len(clips) < 10:
        raise InputError(f"extractor: training needs at least 10 clips, got {len(clips)}; give more")
    trained = len(clips) - int(HELD_OUT * len(clips))
    count = clips.shape[2] // extractor.segment_frames
    weight = torch.zeros(int(labels.max()) + 1, count * extractor.features)
    head = [weight.requires_grad_(), torch.zeros(len(weight)).requires_grad_()]
    net.requires_grad_(True)

    def logits(part: Tensor) -> Tensor:
        return F.linear(net.activations(extractor.segments(part)).reshape(len(part), -1), *head)

    optimiser = torch.optim.Adam([*net.parameters(), *head])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        batch = torch.randint(trained, (BATCH,), generator=generator)
        loss = F.cross_entropy(logits(clips[batch]), labels[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    optimiser.zero_grad()
    extractor.requires_grad_(False)
    with torch.no_grad():
        hits = [
            logits(part).argmax(1) == wanted
            for part, wanted in zip(
                *(torch.split(part[trained:], BATCH) for part in (clips, labels)), strict=True
            )
        ]
    return float(torch.cat(hits).float().mean())


def pretrained(
    name: str,
    *,
    size: int,
    frames: int,
    seed: int,
    recipe: Recipe,
    clips: Callable[[], tuple[Tensor, Tensor]],
    again: bool = False,
) -> tuple[Extractor, float]:
    """Return a built-in extractor with weights trained on this machine, from the user's cache.

    Args:
        name: "c3d_small" or "frame_cnn", with settings or without.
        size, frames, seed: as in `build_extractor`; the training draws from the seed as well.
        recipe: everything that the clips depend on, such as their source, number and seed.
        clips: returns (clips, labels) for the training, see `train_extractor`; called only if the weights
            are not in the cache.
        again: train even if the cache has the weights.

    Returns:
        the extractor, and its accuracy on the clips that were held out.

    Raises:
        InputError: the name or a setting is unknown, or there are too few clips.
    """
    extractor = build_extractor(name, size=size, frames=frames, seed=seed)
    reference = EXTRACTORS.parse(name)

    def make() -> dict[str, Tensor]:
        accuracy = train_extractor(extractor, *clips(), generator(seed, "extractor training", reference.text))
        return {**extractor.net.state_dict(), _ACCURACY: torch.tensor(accuracy)}

    own_recipe: dict[str, str | int | float | bool | None] = {
        "name": reference.text,
        "size": size,
        "frames": frames,
        "seed": seed,
        "steps": STEPS,
        "rate": RATE,
        "held_out": HELD_OUT,
        "batch": BATCH,
    }
    clash = sorted(set(own_recipe) & set(recipe))
    if clash:
        raise InputError(f"extractor: the recipe of the clips names {clash[0]!r}; call it something else")
    tensors = cached_tensors(reference.entry.name, {**own_recipe, **recipe}, make, again=again)
    accuracy = float(tensors.pop(_ACCURACY))
    extractor.net.load_state_dict(tensors)
    return extractor, accuracy


_ACCURACY = "accuracy"


def _is_torchvision(reference: Reference[nn.Module]) -> bool:
    return reference.entry.built_in and isinstance(reference.entry.factory, partial)


def _check_net(name: str, net: nn.Module) -> None:
    """Raise InputError for a user's module that is not frozen or has no valid `segment_frames`."""
    for key, parameter in net.named_parameters():
        if parameter.requires_grad:
            raise InputError(
                f"extractor {name!r}: parameter {key!r} is not frozen, and what is trained is sent; freeze "
                "it with module.requires_grad_(False), or attack it as a model"
            )
        if not torch.isfinite(parameter).all():
            raise InputError(f"extractor {name!r}: weight {key!r} holds NaN or infinity; load other weights")
    frames = getattr(net, "segment_frames", None)
    if type(frames) is not int or frames < 1:
        raise InputError(
            f"extractor {name!r}: segment_frames is {frames!r}, expected the number of frames a segment; set "
            "it as an attribute of the module"
        )


def _wrapped(name: str, net: nn.Module, frames: int, size: int) -> Extractor:
    """Return a network as a frozen extractor, after checking its features of one grey segment."""
    length = cast("_Facts", net).segment_frames
    if frames % length or frames < 1:
        raise InputError(
            f"extractor {name!r}: {frames} frames are no multiple of its segments of {length}; choose "
            f"frames={max(1, frames // length) * length}"
        )
    net.eval()
    try:
        with torch.no_grad():
            features = net(torch.full((1, 3, length, size, size), 0.5))
    except Exception as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"extractor {name!r} does not take segments of shape (1, 3, {length}, {size}, {size}) (segment, "
            f"channel, frame, height, width): {first}; choose a `size` that fits it"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1 or not features.shape[1]:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"extractor {name!r} returned {got} for one segment, expected features (segment, feature); "
            "pool over time and space"
        )
    return Extractor(net, features.shape[1])
