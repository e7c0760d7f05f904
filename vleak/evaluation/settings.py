"""Settings of an evaluation: everything that its numbers depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from vleak.attacks import ATTACKS, Attack
from vleak.data import ClipSet
from vleak.defenses import DEFENSES, Defense, parse, sweep
from vleak.descent.loop import ENGINES
from vleak.enhance import ENHANCERS
from vleak.errors import InputError, argument, unknown_name
from vleak.evaluation.objects import (
    AttackLike,
    DataLike,
    DefenseLike,
    Metric,
    MetricLike,
    ModuleLike,
    attack_text,
    data_name,
    data_set,
    defense_text,
    metric_of,
    module_name,
)
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


def _takes(attack: AttackLike) -> frozenset[str]:
    return ATTACKS[attack].takes if isinstance(attack, str) else attack.takes


def _distinct(attacks: Sequence[AttackLike]) -> tuple[AttackLike, ...]:
    """Attacks without repeated ones.

    Raises:
        InputError: two that differ have one text, so that no record could tell them apart; or an object is
            no attack.
    """
    distinct: dict[str, AttackLike] = {}
    for attack in attacks:
        if not isinstance(attack, str | Attack):
            raise InputError(
                f"attacks: expected names or instances of vleak.Attack, got {type(attack).__name__}"
            )
        text = attack_text(attack)
        if text in distinct and distinct[text] != attack:
            raise InputError(f"attacks: two are called {text!r}; give one of them another name")
        distinct[text] = attack
    return tuple(distinct.values())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run. Two runs with equal settings give equal scores.

    Everything is given by name, or as an object that `vleak.named` gives a name where it has none.

    Attributes:
        data: "synthetic", a path that `vleak.data.load_data` takes, a `ClipSet` or `FeatureSet`, clips
            (N, 3, T, H, H) in [0, 1], or (clips, labels). ``frames`` and ``size`` of an object are its own,
            and where it has no clips at twice the resolution, nothing is enhanced.
        pipeline: "raw", "feature", or "all" for both.
        model: of the raw pipeline, as `vleak.models.build_model` takes it; a module, or a factory.
        extractor, head, loss: of the feature pipeline, as `vleak.models.build_extractor` and `build_head`
            take them, modules or factories; and a key of `vleak.federated.LOSSES`.
        training_state: a key of `vleak.models.TRAINING_STATES`.
        defenses: instances, or as on the command line: a name alone is a sweep, "name:setting=value" one
            strength. "none" always runs beside them.
        attacks: instances, or keys of `vleak.attacks.ATTACKS`; one that is named twice runs once, one that is
            of another pipeline not at all. None for those of ``DEFAULT_ATTACKS``.
        metrics: further scores of reconstructed clips: a name, an object with ``name`` and ``score``, or a
            function (reconstruction, truth) -> score.
        clips: clips to attack, or None for 12 or what the data gives.
        frames: T of every clip. size: its height and width. stride: distance of its frames in a video.
        segments: S, to which feature files of another length are brought.
        reference_frames: how many frames of the scene the attacker holds, each count a row of its own.
        enhance: what brings reconstructed clips to twice the resolution, as `vleak.enhance.build_enhancer`
            takes it, or "none".
        restarts: of every attack, iterations: of every restart; an instance has its own.
        labels: "inferred" by the attack, or "granted" to it.
        seed: of everything random.
        device: "auto", "cpu" or "cuda". engine: a name in `vleak.descent.loop.ENGINES`.
    """

    data: DataLike = "synthetic"
    pipeline: str = "raw"
    model: ModuleLike = "c3d_tiny"
    extractor: ModuleLike = "c3d_small"
    head: ModuleLike = "mlp"
    loss: str = "bce"
    training_state: str = "untrained"
    defenses: Sequence[DefenseLike] = ("dp",)
    attacks: Sequence[AttackLike] | None = None
    metrics: Sequence[MetricLike] = ()
    clips: int | None = None
    frames: int = 8
    size: int = 32
    stride: int = 2
    segments: int = 32
    reference_frames: Sequence[int] = (0,)
    enhance: str = "classical"
    restarts: int = 1
    iterations: int = 150
    labels: str = "inferred"
    seed: int = 0
    device: str = "auto"
    engine: str = "native"

    def __post_init__(self) -> None:
        """Check names and sizes, so that a wrong one costs no time."""
        self._take_shape()
        choices = (
            ("pipeline", self.pipeline, PIPELINES),
            ("training state", self.training_state, TRAINING_STATES),
            ("device", self.device, DEVICES),
            ("engine", self.engine, ENGINES),
            ("labels", self.labels, LABELS),
            ("loss", self.loss, LOSSES),
            *(("attack", name, ATTACKS) for name in self.attacks or () if isinstance(name, str)),
        )
        for kind, given, known in choices:
            if given not in known:
                raise unknown_name(kind, given, known)
        for name, value in (("restarts", self.restarts), ("iterations", self.iterations)):
            if value < 1:
                raise InputError(f"{argument(name, value)}: expected at least 1")
        if self.attacks is not None:
            object.__setattr__(self, "attacks", _distinct(self.attacks))
        self._check_references()
        self._check_names()
        self.strengths()
        self.metric_objects()

    def _take_shape(self) -> None:
        """Take frames and size from clips that were handed over."""
        data = data_set(self.data)
        if isinstance(data, ClipSet):
            object.__setattr__(self, "frames", data.clips.shape[2])
            object.__setattr__(self, "size", data.clips.shape[3])
            if data.fine is None:
                object.__setattr__(self, "enhance", "none")
        elif data is not None:
            object.__setattr__(self, "enhance", "none")

    def _check_references(self) -> None:
        counts = tuple(dict.fromkeys(self.reference_frames))
        if not counts or min(counts) < 0:
            given = ",".join(map(str, self.reference_frames))
            raise InputError(f"reference_frames={given!r}: expected numbers from 0, such as 0,1,4")
        object.__setattr__(self, "reference_frames", counts)

    def _check_names(self) -> None:
        """Refuse what the models' own parsers would, and attacks that are of no pipeline of this run."""
        if "raw" in self.pipelines():
            module_name("model", self.model)
        if "feature" in self.pipelines():
            for argument_, module, known in (
                ("extractor", self.extractor, EXTRACTORS),
                ("head", self.head, HEADS),
            ):
                if isinstance(module, str):
                    canonical(argument_, module, known)
                module_name(argument_, module)
        if self.enhance not in ("none", *ENHANCERS) and not self.enhance.startswith("spandrel:"):
            raise unknown_name("enhancer", self.enhance, ("none", *ENHANCERS), also="spandrel:FILE")
        running = {name for pipeline in self.pipelines() for name in self.attacks_on(pipeline)}
        for attack in self.attacks or ():
            if (name := attack_text(attack)) not in running:
                raise InputError(
                    f"attacks={name}: takes {' or '.join(sorted(_takes(attack)))}, which the "
                    f"{self.pipeline} pipeline has none of; give another `pipeline` or attack"
                )

    def pipelines(self) -> tuple[str, ...]:
        """Return the pipelines that run."""
        return ("raw", "feature") if self.pipeline == "all" else (self.pipeline,)

    def attacks_on(self, pipeline: str) -> tuple[str, ...]:
        """Return the attacks that run on a pipeline."""
        if self.attacks is None:
            return DEFAULT_ATTACKS[pipeline]
        return tuple(attack_text(a) for a in self.attacks if _TAKES[pipeline] in _takes(a))

    def attack_objects(self) -> dict[str, Attack]:
        """Return the attacks that were given as instances, by their text in records."""
        return {attack_text(a): a for a in self.attacks or () if isinstance(a, Attack)}

    def metric_objects(self) -> dict[str, Metric]:
        """Return the further metrics by name.

        Raises:
            InputError: one is unknown or has no name, or two share one.
        """
        metrics = [metric_of(metric) for metric in self.metrics]
        if len(names := dict(metrics)) < len(metrics):
            raise InputError(f"metrics: expected a name for each, got {', '.join(n for n, _ in metrics)}")
        return names

    def strengths(self) -> list[Defense]:
        """Return every defense strength to run, "none" first, each once.

        Raises:
            InputError: a defense or a setting of it is unknown, or a value does not fit.
        """
        given: list[Defense] = []
        for defense in self.defenses:
            if isinstance(defense, Defense):
                given.append(defense)
            elif isinstance(defense, str):
                given += [parse(defense, DEFENSES)] if ":" in defense else sweep(defense)
            else:
                raise InputError(
                    f"defenses: expected names or instances of vleak.Defense, got {type(defense).__name__}"
                )
        return list({defense_text(defense): defense for defense in [Defense(), *given]}.values())

    def resolved(self) -> SettingsRecord:
        """Return the settings as records have them, with device and engine as they will run.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "data": data_name(self.data),
            "defenses": [defense_text(defense) for defense in self.strengths()],
            "attacks": list(dict.fromkeys(n for p in self.pipelines() for n in self.attacks_on(p))),
            "metrics": list(self.metric_objects()),
            "device": self.torch_device().type,
            "engine": self.engine_that_runs(),
        }
        for name in ("model", "extractor", "head"):
            values[name] = module_name(name, getattr(self, name))
        return SettingsRecord.model_validate(values)

    def torch_device(self) -> torch.device:
        """Return the device to run on; "auto" takes CUDA where there is any.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "device=cuda: no CUDA device is visible to PyTorch; give device=cpu, or see `vleak doctor`"
            )
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def engine_that_runs(self) -> str:
        """Return the engine asked for where native kernels are there; otherwise "reference"."""
        if self.engine == "reference" or operators.backend(self.torch_device()) != "native":
            return "reference"
        return self.engine
