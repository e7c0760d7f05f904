"""Settings of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vleak.data import ClipRequest
from vleak.errors import InputError, argument
from vleak.evaluation import Settings
from vleak.results.statistics import MIN_CLIPS

_QUICK_FRAMES, _QUICK_ITERATIONS = 4, 80


@dataclass(frozen=True)
class Study:
    """Settings that all runs of a study share.

    Attributes:
        data: "synthetic", or videos as `vleak.data.load_data` takes them.
        clips: clips to attack, at least 8: with fewer there is no interval.
        frames, size, stride, seed, iterations, device, engine: as in `vleak.evaluation.Settings`.
        quick: clips of at most 4 frames, fewer runs for each claim, at most 80 iterations each, the exact
            attack alone on features, and no enhancement network, which would have to be trained first.
    """

    data: str = "synthetic"
    clips: int = 12
    frames: int = 8
    size: int = 32
    stride: int = 2
    seed: int = 0
    iterations: int = 150
    device: str = "auto"
    engine: str = "native"
    quick: bool = False

    @property
    def attacked_frames(self) -> int:
        """Frames of the clips that are attacked."""
        return min(self.frames, _QUICK_FRAMES) if self.quick else self.frames

    def check(self) -> None:
        """Check the settings before anything slow.

        Raises:
            InputError: fewer clips than an interval needs, or a number out of range.
        """
        ClipRequest(clips=self.clips, frames=self.frames, size=self.size, stride=self.stride, seed=self.seed)
        self.settings(iterations=self.iterations)
        if self.clips < MIN_CLIPS:
            raise InputError(
                f"{argument('clips', self.clips)}: expected at least {MIN_CLIPS}, fewer give no interval"
            )

    def settings(self, **changes: Any) -> Settings:
        """Return the settings of one run.

        Args:
            changes: fields of `vleak.evaluation.Settings` that differ from those of the study.
        """
        iterations = min(self.iterations, _QUICK_ITERATIONS) if self.quick else self.iterations
        shared: dict[str, Any] = {
            "data": self.data,
            "clips": self.clips,
            "frames": self.attacked_frames,
            "size": self.size,
            "stride": self.stride,
            "seed": self.seed,
            "iterations": iterations,
            "device": self.device,
            "engine": self.engine,
            "defenses": ("none",),
            "enhance": "none",
            "audit_draws": 0,
        }
        return Settings(**shared | changes)
