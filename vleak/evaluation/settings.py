"""What one evaluation is: every setting that its numbers depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from vleak import ops
from vleak.attacks import ATTACKS
from vleak.defenses import DEFENSES, Defense, parse, spell, sweep
from vleak.engine.loop import ENGINES
from vleak.errors import InputError, unknown_name
from vleak.models import TRAINING_STATES

PIPELINES = ("raw",)
DEVICES = ("auto", "cpu", "cuda")
LABELS = ("inferred", "granted")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run. Two runs with equal settings give equal scores.

    Attributes:
        data: "synthetic", or a path that `vleak.data.load_clips` takes.
        pipeline: "raw".
        model: a key of `vleak.models.MODELS`, or "package.module:factory".
        training_state: a key of `vleak.models.TRAINING_STATES`.
        defenses: as on the command line: a name alone is a sweep, "name:setting=value" one strength.
            "none" always runs beside them.
        attacks: keys of `vleak.attacks.ATTACKS`; one that is named twice runs once.
        clips: clips to attack, or None for 12 or what the data gives.
        frames: T of every clip. size: its height and width. stride: distance of its frames in a video.
        restarts: of every attack, iterations: of every restart.
        labels: "inferred" by the attack, or "granted" to it.
        seed: of everything random.
        device: "auto", "cpu" or "cuda". engine: a name in `vleak.engine.loop.ENGINES`.
    """

    data: str = "synthetic"
    pipeline: str = "raw"
    model: str = "c3d_tiny"
    training_state: str = "untrained"
    defenses: tuple[str, ...] = ("dp",)
    attacks: tuple[str, ...] = ("matching",)
    clips: int | None = None
    frames: int = 8
    size: int = 32
    stride: int = 2
    restarts: int = 1
    iterations: int = 150
    labels: str = "inferred"
    seed: int = 0
    device: str = "auto"
    engine: str = "native"

    def __post_init__(self) -> None:
        """Check names and sizes, so that a wrong one costs no time."""
        choices = (
            ("pipeline", self.pipeline, PIPELINES),
            ("training state", self.training_state, TRAINING_STATES),
            ("device", self.device, DEVICES),
            ("engine", self.engine, ENGINES),
            ("labels", self.labels, LABELS),
            *(("attack", name, ATTACKS) for name in self.attacks),
        )
        for kind, given, known in choices:
            if given not in known:
                raise unknown_name(kind, given, known)
        for name, value in (("restarts", self.restarts), ("iterations", self.iterations)):
            if value < 1:
                raise InputError(f"--{name} {value}: expected at least 1")
        object.__setattr__(self, "attacks", tuple(dict.fromkeys(self.attacks)))
        self.strengths()

    def strengths(self) -> list[Defense]:
        """Return every defense strength to run, "none" first, each once.

        Raises:
            InputError: a defense or a setting of it is unknown, or a value does not fit.
        """
        given: list[Defense] = []
        for text in self.defenses:
            given += [parse(text, DEFENSES)] if ":" in text else sweep(text)
        return list({spell(defense): defense for defense in [Defense(), *given]}.values())

    def resolved(self) -> dict[str, Any]:
        """Return the settings as JSON values, with device and engine as they will run.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        return {
            **asdict(self),
            "defenses": [spell(d) for d in self.strengths()],
            "attacks": list(self.attacks),
            "device": self.torch_device().type,
            "engine": self.engine_that_runs(),
        }

    def torch_device(self) -> torch.device:
        """Return the device to run on; "auto" takes CUDA where there is any.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "--device cuda: no CUDA device is visible to PyTorch; use --device cpu, or see `vleak doctor`"
            )
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def engine_that_runs(self) -> str:
        """Return the engine asked for where native kernels are there; otherwise "reference"."""
        if self.engine == "reference" or ops.backend(self.torch_device()) != "native":
            return "reference"
        return self.engine
