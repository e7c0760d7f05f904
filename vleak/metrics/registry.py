"""Registry of metrics of a rebuilt clip, built in or from plug-ins."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from vleak.errors import InputError, VleakError, first_line, interrupts
from vleak.metrics.fidelity import motion_psnr, motion_ssim, psnr, ssim
from vleak.registry import Registry


class Metric(ABC):
    """Base class of all metrics, each a number for a rebuilt clip and the truth.

    The settings of a subclass are keyword-only arguments of ``__init__``.

    Attributes:
        name: name in tables and records; by default the name of the class.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Set the name of a class that does not define one."""
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    @abstractmethod
    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:
        """Return the score of a rebuilt clip; None where it is undefined, such as for a still clip.

        Args:
            reconstruction: (C, T, H, W) in [0, 1].
            truth: of the same shape.
        """


class Psnr(Metric):
    """Mean PSNR of the frames in dB."""

    name = "psnr"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        """See `vleak.metrics.psnr`."""
        return psnr(reconstruction, truth)


class Ssim(Metric):
    """Mean structural similarity of the frames."""

    name = "ssim"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        """See `vleak.metrics.ssim`."""
        return ssim(reconstruction, truth)


class MotionPsnr(Metric):
    """PSNR in dB where the true clip moves."""

    name = "motion_psnr"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:
        """See `vleak.metrics.motion_psnr`."""
        return motion_psnr(reconstruction, truth)


class MotionSsim(Metric):
    """Structural similarity where the true clip moves."""

    name = "motion_ssim"

    def score(self, reconstruction: Tensor, truth: Tensor) -> float | None:
        """See `vleak.metrics.motion_ssim`."""
        return motion_ssim(reconstruction, truth)


METRICS: Registry[Metric] = Registry(
    "metric", {kind.name: kind for kind in (Psnr, Ssim, MotionPsnr, MotionSsim)}, base=Metric
)
"""Registry of metrics, by their names on the command line."""


def measure(
    metric: Metric, reconstruction: Tensor, truth: Tensor, *, name: str | None = None
) -> float | None:
    """Return the score of a metric, which is called on copies of both clips.

    Args:
        metric: a built-in metric or one of a plug-in.
        reconstruction: (C, T, H, W) in [0, 1].
        truth: of the same shape.
        name: of the metric, for messages; None for its own.

    Raises:
        InputError: the metric raised, or returned neither a finite number nor None; the message names it.
    """
    kind = type(metric)
    where = f"metric {name or metric.name!r} ({kind.__module__}:{kind.__qualname__})"
    try:
        value = metric.score(reconstruction.clone(), truth.clone())
        number = None if value is None else float(value)
    except VleakError:
        raise
    except BaseException as error:
        if interrupts(error):
            raise
        line = first_line(error)
        raise InputError(f"{where} raised {type(error).__name__}: {line}") from error
    if number is not None and not math.isfinite(number):
        raise InputError(f"{where} returned {number}, expected a finite number, or None without a meaning")
    return number
