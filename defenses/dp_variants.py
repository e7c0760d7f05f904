"""DP-SGD in other forms: clipped tensor by tensor, and over several windows of a video."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vleak.defenses.dp import DpSgd
from vleak.defenses.ranges import check_whole
from vleak.errors import CapabilityError, InputError
from vleak.federated import Channel, Loss, Privacy, Update

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

__all__ = ["DpLayers", "DpVideo"]


@dataclass(frozen=True, kw_only=True)
class DpLayers(DpSgd):
    """DP-SGD whose clip is layer by layer (McMahan et al., ICLR 2018, arXiv 1710.06963), by Opacus.

    Of L tensors each is clipped to ``max_grad_norm / sqrt(L)``, so that all together have at most the norm
    ``max_grad_norm``, and noise and guarantee are those of `DpSgd`. Less is left of a clip: a tensor of
    small norm does not give its share to the others.
    """

    name: ClassVar[str] = "dp_layers"
    short: ClassVar[str] = "layers"

    def channel(self, update: Update) -> Channel | None:
        """Return the channel of `DpSgd`, whose norm is shared among the tensors."""
        channel = super().channel(update)
        return None if channel is None else replace(channel, layerwise=True)

    def optimizer(
        self, parameters: Sequence[nn.Parameter], clips: int, generator: torch.Generator
    ) -> DPOptimizer:
        """Return Opacus' optimizer that clips by layers, with equal norms for all of them."""
        from opacus.optimizers import DPPerLayerOptimizer

        return DPPerLayerOptimizer(
            torch.optim.SGD(parameters, lr=0.0),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=[self.max_grad_norm / math.sqrt(len(parameters))] * len(parameters),
            expected_batch_size=clips,
            loss_reduction="mean",
            generator=generator,
        )


@dataclass(frozen=True, kw_only=True)
class DpVideo(DpSgd):
    """Multi-clip DP-SGD (Luo et al., WACV 2024, arXiv 2306.15742): a video counts once, not its windows.

    Of every row of the batch, a video, several windows in time are taken. Their gradients are averaged before
    the clip, so that sensitivity and noise are those of one row, and the average is less often cut. The
    windows are spread evenly, where the paper draws them; their frames are held to the length of the video,
    as models ask for a number of frames. Of features, windows of segments are taken.

    Attributes:
        windows: of a video, at least 1.
        part: length of a window, as a part of the video, in (0, 1].
    """

    name: ClassVar[str] = "dp_video"
    short: ClassVar[str] = "video"
    windows: int = 4
    part: float = 0.5

    def __post_init__(self) -> None:
        """Check every setting."""
        super().__post_init__()
        check_whole(self.name, "windows", self.windows, 1)
        if not 0 < self.part <= 1:
            raise InputError(f"dp_video: part is {self.part}, expected a number in (0, 1]")

    def channel(self, update: Update) -> Channel | None:
        """Return the channel of `DpSgd`, of the mean gradient over the windows."""
        channel = super().channel(update)
        return None if channel is None else replace(channel, key=(channel.key, self.windows, self.part))

    def privacy(self) -> Privacy | None:
        """Return the certificate of `DpSgd`, whose unit is the video with all its windows."""
        proven = super().privacy()
        return None if proven is None else replace(proven, unit="one video")

    def per_clip(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean gradient over its windows of every video, (N, *parameter shape) by name."""
        of_clips = super().per_clip
        return self._mean([of_clips(model, loss, window, labels) for window in self._windows(clips)])

    def plain(self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean gradient over videos and windows."""
        of_clips = super().plain
        return self._mean([of_clips(model, loss, window, labels) for window in self._windows(clips)])

    def _windows(self, clips: Tensor) -> Iterator[Tensor]:
        if self.part == 1:
            yield from [clips] * self.windows
            return
        if clips.dim() < 3:  # canaries of an audit, which are no clips
            raise CapabilityError(
                f"dp_video: expected clips (N, C, T, H, W) or features (N, S, F), which have a time, got "
                f"shape {tuple(clips.shape)}; give part=1"
            )
        axis = 1 if clips.dim() == 3 else 2
        frames = clips.shape[axis]
        length = math.ceil(self.part * frames)
        held = torch.arange(frames, device=clips.device) * length // frames
        for index in range(self.windows):
            start = round(index * (frames - length) / max(1, self.windows - 1))
            yield clips.index_select(axis, start + held)

    @staticmethod
    def _mean(gradients: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
