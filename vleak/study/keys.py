"""Keys of the runs of a study: what each run varies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from vleak.evaluation import Settings
from vleak.study.settings import Study


class RunKey(ABC):
    """Key of one run: the settings that it varies, as fields."""

    pipeline: ClassVar[Literal["raw", "feature"]]

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in tables and cell references; it is written and never parsed."""

    @property
    def folder(self) -> str:
        """Name of the run's folder below that of the study; it is written and never parsed."""
        return "".join(c if c.isalnum() else "-" for c in self.name).replace("--", "-")

    @abstractmethod
    def settings(self, study: Study) -> Settings:
        """Return the settings of the run."""


@dataclass(frozen=True, kw_only=True)
class RawRun(RunKey):
    """Key of a run on raw frames.

    Attributes:
        width, depth: size of the classifier; None for its default.
        enhancement: name of the enhancer, or "none".
        reference_frames: counts of frames of the scene that the attacker holds.
        compressions: defenses that compress the gradient; they run beside the undefended client.
    """

    pipeline = "raw"

    width: int | None = None
    depth: int | None = None
    enhancement: str = "none"
    reference_frames: tuple[int, ...] = (0,)
    compressions: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Size of the classifier in words, such as "width 8"; empty for the default."""
        parts = (("width", self.width), ("depth", self.depth))
        return ", ".join(f"{axis} {value}" for axis, value in parts if value is not None)

    @property
    def name(self) -> str:
        """Name such as "raw, width 8"."""
        if self.compressions:
            return "compressed"
        network = "network" if self.enhancement == "network" else ""
        return ", ".join(part for part in ("raw", self.size, network) if part)

    def settings(self, study: Study) -> Settings:
        """Return the settings of the run."""
        size = {"width": self.width, "depth": self.depth}
        options = ",".join(f"{axis}={value}" for axis, value in size.items() if value is not None)
        return study.settings(
            pipeline=self.pipeline,
            model=f"c3d_tiny:{options}" if options else "c3d_tiny",
            enhance=self.enhancement,
            reference_frames=self.reference_frames,
            defenses=self.compressions or ("none",),
        )


@dataclass(frozen=True, kw_only=True)
class FeatureRun(RunKey):
    """Key of a run on the features of a frozen extractor.

    Attributes:
        extractor, head, loss: names in their registries.
        head_depth: layers of the head; None for its default.
    """

    pipeline = "feature"

    extractor: str
    head: str
    loss: str
    head_depth: int | None = None

    @property
    def head_text(self) -> str:
        """Head as the command line takes it, such as "mlp:depth=2"."""
        return self.head if self.head_depth is None else f"{self.head}:depth={self.head_depth}"

    @property
    def factors(self) -> tuple[str, str, str]:
        """Extractor, head and loss."""
        return self.extractor, self.head_text, self.loss

    @property
    def name(self) -> str:
        """Name such as "c3d_small, mlp:depth=2, bce"."""
        return ", ".join(self.factors)

    def settings(self, study: Study) -> Settings:
        """Return the settings of the run."""
        return study.settings(
            pipeline=self.pipeline,
            extractor=self.extractor,
            head=self.head_text,
            loss=self.loss,
            attacks=("low_rank",) if study.quick else None,
        )
