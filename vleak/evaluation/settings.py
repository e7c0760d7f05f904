"""What one evaluation is: every setting that its numbers depend on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import torch

from vleak.attacks import Attack
from vleak.data import ClipSet, FeatureSet
from vleak.defenses import Defense, NoDefense, defense_text, parse_defenses
from vleak.descent.loop import ENGINES
from vleak.enhance import ENHANCERS
from vleak.errors import InputError, argument, unknown_name
from vleak.evaluation.chosen import ChosenAttack, choose_attack, choose_metric
from vleak.evaluation.models import Model, model_name
from vleak.federated import LOSSES
from vleak.metrics import Metric
from vleak.models import EXTRACTORS, HEADS, TRAINING_STATES, Extractor
from vleak.native import operators
from vleak.registry import Setting
from vleak.results.records import SettingsRecord

__all__ = ["DEFAULT_ATTACKS", "DEVICES", "LABELS", "PIPELINES", "Settings"]

PIPELINES = ("raw", "feature", "all")
DEVICES = ("auto", "cpu", "cuda")
LABELS = ("inferred", "granted")
DEFAULT_ATTACKS = {"raw": ("matching",), "feature": ("matching", "low_rank")}
"""What runs where nobody names an attack: on features also the exact method."""

Engine = Literal["native", "inductor", "reference"]
_TAKES = {"raw": "frames", "feature": "features"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run. Two runs with equal settings give equal scores.

    Attributes:
        data: "synthetic", a path that `vleak.data.load_data` takes, or the clips or features themselves.
        pipeline: "raw", "feature", or "all" for both.
        model: of the raw pipeline, as `vleak.models.build_model` takes it, or the classifier itself.
        extractor, head, loss: of the feature pipeline, as `vleak.models.build_extractor` and `build_head`
            take them, or the modules themselves, and a key of `vleak.federated.LOSSES`.
        training_state: a key of `vleak.models.TRAINING_STATES`.
        defenses: a name alone is a sweep, "name:setting=value" one strength, as is a defense itself.
            "none" always runs beside them.
        attacks: as `vleak.attacks.ATTACKS` takes them, "name:setting=value" included, or attacks themselves;
            one that is named twice runs once, one that is of another pipeline not at all. None for those of
            ``DEFAULT_ATTACKS``.
        metrics: further metrics, as `vleak.metrics.METRICS` takes them, or metrics themselves.
        clips: clips to attack, or None for 12 or what the data gives.
        frames: T of every clip. size: its height and width. stride: distance of its frames in a video.
        segments: S, to which feature files of another length are brought.
        reference_frames: how many frames of the scene the attacker holds, each count a row of its own.
        enhance: what brings rebuilt clips to twice the resolution, as `vleak.enhance.build_enhancer` takes
            it, or "none".
        restarts: of every attack whose text does not set them, iterations: of every restart.
        labels: "inferred" by the attack, or "granted" to it.
        seed: of everything random.
        device: "auto", "cpu" or "cuda". engine: a name in `vleak.descent.loop.ENGINES`.
    """

    data: str | Path | ClipSet | FeatureSet = "synthetic"
    pipeline: str = "raw"
    model: Model = "c3d_tiny"
    extractor: str | Extractor = "c3d_small"
    head: Model = "mlp"
    loss: str = "bce"
    training_state: str = "untrained"
    defenses: tuple[str | Defense, ...] = ("dp",)
    attacks: tuple[str | Attack, ...] | None = None
    metrics: tuple[str | Metric, ...] = ()
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
        )
        for kind, value, known in choices:
            if value not in known:
                raise unknown_name(kind, value, known)
        for name, count in (("restarts", self.restarts), ("iterations", self.iterations)):
            if count < 1:
                raise InputError(f"{argument(name, count)}: expected at least 1")
        self._check_references()
        self._check_names()

    def _check_references(self) -> None:
        counts = tuple(dict.fromkeys(self.reference_frames))
        if not counts or min(counts) < 0:
            text = ",".join(map(str, self.reference_frames))
            raise InputError(f"{argument('reference_frames', text)}: expected numbers from 0, such as 0,1,4")
        object.__setattr__(self, "reference_frames", counts)

    def _check_names(self) -> None:
        """Refuse what the parsers of names would, and attacks that are of no pipeline of this run."""
        if "feature" in self.pipelines():
            if isinstance(self.extractor, str):
                EXTRACTORS.parse(self.extractor)
            if isinstance(self.head, str):
                HEADS.parse(self.head)
        if self.enhance != "none" and not self.enhance.startswith("spandrel:"):
            ENHANCERS.parse(self.enhance)
        running = {chosen.text for pipeline in self.pipelines() for chosen in self.attacks_on(pipeline)}
        for chosen in self._chosen:
            if chosen.text not in running and self.attacks is not None:
                raise InputError(
                    f"{argument('attacks', chosen.text)}: takes {' or '.join(sorted(chosen.attack.takes))}, "
                    f"which the {self.pipeline} pipeline has none of; give another pipeline or attack"
                )
        self.strengths()
        self.chosen_metrics()

    def pipelines(self) -> tuple[str, ...]:
        """Kinds of the pipelines that run."""
        return ("raw", "feature") if self.pipeline == "all" else (self.pipeline,)

    @cached_property
    def _chosen(self) -> tuple[ChosenAttack, ...]:
        """All attacks, each once."""
        names: tuple[str | Attack, ...] = self.attacks or ()
        if self.attacks is None:
            names = tuple(name for kind in self.pipelines() for name in DEFAULT_ATTACKS[kind])
        shared: dict[str, Setting] = {
            "iterations": self.iterations, "restarts": self.restarts, "engine": self.engine_that_runs()
        }  # fmt: skip
        chosen = [choose_attack(name, shared) for name in names]
        return tuple({attack.text: attack for attack in chosen}.values())

    def attacks_on(self, pipeline: str) -> tuple[ChosenAttack, ...]:
        """Attacks that run on a kind of pipeline."""
        on_it = [chosen for chosen in self._chosen if _TAKES[pipeline] in chosen.attack.takes]
        if self.attacks is None:
            on_it = [chosen for chosen in on_it if chosen.text in DEFAULT_ATTACKS[pipeline]]
        return tuple(on_it)

    def strengths(self) -> list[Defense]:
        """Every defense strength to run, "none" first, each once.

        Raises:
            InputError: a defense or a setting of it is unknown, or a value does not fit.
        """
        strengths: list[Defense] = [NoDefense()]
        for defense in self.defenses:
            strengths += parse_defenses(defense)
        return list({defense_text(defense): defense for defense in strengths}.values())

    def chosen_metrics(self) -> dict[str, Metric]:
        """Further metrics by what stands for them in records.

        Raises:
            InputError: a metric or a setting of it is unknown, or a value does not fit.
        """
        return dict(choose_metric(metric) for metric in self.metrics)

    @property
    def data_name(self) -> str:
        """What stands for the data in messages and records."""
        return self.data.name if isinstance(self.data, ClipSet | FeatureSet) else str(self.data)

    @property
    def model_name(self) -> str:
        """What stands for the model of the raw pipeline in ids and records.

        Raises:
            InputError: it is an object without a name.
        """
        return model_name("model", self.model)

    def resolved(self) -> SettingsRecord:
        """Settings as records have them, with device and engine as they will run.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        attacks = [chosen.text for kind in self.pipelines() for chosen in self.attacks_on(kind)]
        same = ("pipeline", "loss", "training_state", "clips", "frames", "size",
                "stride", "segments", "reference_frames", "enhance", "restarts", "iterations", "labels",
                "seed")  # fmt: skip
        return SettingsRecord.model_validate(
            {name: getattr(self, name) for name in same}
            | {
                "data": self.data_name,
                "model": self.model_name,
                "extractor": model_name("extractor", self.extractor),
                "head": model_name("head", self.head),
                "defenses": [defense_text(defense) for defense in self.strengths()],
                "attacks": list(dict.fromkeys(attacks)),
                "metrics": list(self.chosen_metrics()),
                "device": self.torch_device().type,
                "engine": self.engine_that_runs(),
            }
        )

    def torch_device(self) -> torch.device:
        """Device to run on; "auto" takes CUDA where there is any.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"{argument('device', 'cuda')}: no CUDA device is visible to PyTorch; use "
                f"{argument('device', 'cpu')}, or see `vleak doctor`"
            )
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if cuda else "cpu")

    def engine_that_runs(self) -> Engine:
        """Engine asked for where native kernels are there; otherwise "reference"."""
        if self.engine == "reference" or operators.backend(self.torch_device()) != "native":
            return "reference"
        return cast("Engine", self.engine)  # checked above
