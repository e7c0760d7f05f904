"""What one evaluation is: every setting that its numbers depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from vleak.attacks import ATTACKS
from vleak.defenses import DEFENSES, Defense, parse, spell, sweep
from vleak.descent.loop import ENGINES
from vleak.enhance import ENHANCERS
from vleak.errors import InputError, unknown_name
from vleak.federated import LOSSES
from vleak.models import EXTRACTORS, HEADS, TRAINING_STATES, canonical
from vleak.native import operators
from vleak.results.records import SettingsRecord

PIPELINES = ("raw", "feature", "all")
DEVICES = ("auto", "cpu", "cuda")
LABELS = ("inferred", "granted")
#: what runs where nobody names an attack: on features also the exact method.
DEFAULT_ATTACKS = {"raw": ("matching",), "feature": ("matching", "low_rank")}
_TAKES = {"raw": "frames", "feature": "features"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run. Two runs with equal settings give equal scores.

    Attributes:
        data: "synthetic", or a path that `vleak.data.load_data` takes.
        pipeline: "raw", "feature", or "all" for both.
        model: of the raw pipeline, as `vleak.models.build_model` takes it.
        extractor, head, loss: of the feature pipeline, as `vleak.models.build_extractor` and `build_head`
            take them, and a key of `vleak.federated.LOSSES`.
        training_state: a key of `vleak.models.TRAINING_STATES`.
        defenses: as on the command line: a name alone is a sweep, "name:setting=value" one strength.
            "none" always runs beside them.
        attacks: keys of `vleak.attacks.ATTACKS`; one that is named twice runs once, one that is of another
            pipeline not at all. None for those of ``DEFAULT_ATTACKS``.
        clips: clips to attack, or None for 12 or what the data gives.
        frames: T of every clip. size: its height and width. stride: distance of its frames in a video.
        segments: S, to which feature files of another length are brought.
        reference_frames: how many frames of the scene the attacker holds, each count a row of its own.
        enhance: what brings rebuilt clips to twice the resolution, as `vleak.enhance.build_enhancer` takes
            it, or "none".
        restarts: of every attack, iterations: of every restart.
        labels: "inferred" by the attack, or "granted" to it.
        seed: of everything random.
        device: "auto", "cpu" or "cuda". engine: a name in `vleak.descent.loop.ENGINES`.
    """

    data: str = "synthetic"
    pipeline: str = "raw"
    model: str = "c3d_tiny"
    extractor: str = "c3d_small"
    head: str = "mlp"
    loss: str = "bce"
    training_state: str = "untrained"
    defenses: tuple[str, ...] = ("dp",)
    attacks: tuple[str, ...] | None = None
    clips: int | None = None
    frames: int = 8
    size: int = 32
    stride: int = 2
    segments: int = 32
    reference_frames: tuple[int, ...] = (0,)
    enhance: str = "classical"
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
            ("loss", self.loss, LOSSES),
            *(("attack", name, ATTACKS) for name in self.attacks or ()),
        )
        for kind, given, known in choices:
            if given not in known:
                raise unknown_name(kind, given, known)
        for name, value in (("restarts", self.restarts), ("iterations", self.iterations)):
            if value < 1:
                raise InputError(f"--{name} {value}: expected at least 1")
        if self.attacks is not None:
            object.__setattr__(self, "attacks", tuple(dict.fromkeys(self.attacks)))
        self._check_references()
        self._check_names()
        self.strengths()

    def _check_references(self) -> None:
        counts = tuple(dict.fromkeys(self.reference_frames))
        if not counts or min(counts) < 0:
            given = ",".join(map(str, self.reference_frames))
            raise InputError(f"--reference-frames {given!r}: expected numbers from 0, such as 0,1,4")
        object.__setattr__(self, "reference_frames", counts)

    def _check_names(self) -> None:
        """Refuse what the models' own parsers would, and attacks that are of no pipeline of this run."""
        if "feature" in self.pipelines():
            canonical("extractor", self.extractor, EXTRACTORS)
            canonical("head", self.head, HEADS)
        if self.enhance not in ("none", *ENHANCERS) and not self.enhance.startswith("spandrel:"):
            raise unknown_name("enhancer", self.enhance, ("none", *ENHANCERS), also="spandrel:FILE")
        running = {name for pipeline in self.pipelines() for name in self.attacks_on(pipeline)}
        for name in self.attacks or ():
            if name not in running:
                raise InputError(
                    f"--attack {name}: takes {' or '.join(sorted(ATTACKS[name].takes))}, which the "
                    f"{self.pipeline} pipeline has none of; give another --pipeline or attack"
                )

    def pipelines(self) -> tuple[str, ...]:
        """Return the pipelines that run."""
        return ("raw", "feature") if self.pipeline == "all" else (self.pipeline,)

    def attacks_on(self, pipeline: str) -> tuple[str, ...]:
        """Return the attacks that run on a pipeline."""
        if self.attacks is None:
            return DEFAULT_ATTACKS[pipeline]
        return tuple(name for name in self.attacks if _TAKES[pipeline] in ATTACKS[name].takes)

    def strengths(self) -> list[Defense]:
        """Return every defense strength to run, "none" first, each once.

        Raises:
            InputError: a defense or a setting of it is unknown, or a value does not fit.
        """
        given: list[Defense] = []
        for text in self.defenses:
            given += [parse(text, DEFENSES)] if ":" in text else sweep(text)
        return list({spell(defense): defense for defense in [Defense(), *given]}.values())

    def resolved(self) -> SettingsRecord:
        """Return the settings as records have them, with device and engine as they will run.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        values = asdict(self) | {
            "defenses": [spell(d) for d in self.strengths()],
            "attacks": list(dict.fromkeys(n for p in self.pipelines() for n in self.attacks_on(p))),
            "device": self.torch_device().type,
            "engine": self.engine_that_runs(),
        }
        return SettingsRecord.model_validate(values)

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
        if self.engine == "reference" or operators.backend(self.torch_device()) != "native":
            return "reference"
        return self.engine
