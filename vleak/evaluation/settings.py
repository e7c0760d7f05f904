"""What one evaluation is: every setting that its numbers depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, cast

import torch

from vleak.attacks import Attack
from vleak.data import PUBLIC_FROM, ClipSet
from vleak.defaults import BUDGET, NON_ADAPTIVE_CLIPS
from vleak.defenses import Defense, defense_text
from vleak.descent.loop import ENGINES
from vleak.enhance import ENHANCERS
from vleak.errors import InputError, argument, unknown_name, utf8_text
from vleak.evaluation.chosen import ChosenAttack, choose_attack
from vleak.evaluation.clients import ClientChoice, numbers
from vleak.evaluation.objects import (
    AttackLike,
    DataLike,
    DefenseLike,
    MetricLike,
    ModuleLike,
    data_name,
    data_set,
    is_finished,
    metric_of,
    module_name,
)
from vleak.evaluation.strengths import strengths_of
from vleak.federated import LOSSES
from vleak.metrics import Metric
from vleak.models import (
    EXTRACTORS,
    GIVEN,
    HEADS,
    TRAINING_STATES,
    Layout,
    check_checkpoint,
    is_built_in,
    on_trial,
    read_layout,
)
from vleak.native import operators
from vleak.registry import Setting
from vleak.results.records import SettingsRecord

__all__ = ["DEFAULT_ATTACKS", "DEVICES", "LABELS", "PIPELINES", "Settings"]

PIPELINES = ("raw", "feature", "all")
DEVICES = ("auto", "cpu", "cuda")
LABELS = ("inferred", "granted")
DEFAULT_ATTACKS = {"raw": ("strongest",), "feature": ("matching", "low_rank")}
"""What runs where nobody names an attack: on features also the exact method."""

Engine = Literal["native", "reference"]
_MOST = {"restarts": 1_000, "iterations": 1_000_000, "budget": 1_000_000_000, "segments": 10_000}
_WHOLE = (
    "frames", "size", "stride", "segments", "restarts", "iterations", "budget", "non_adaptive", "utility",
    "seed", "draw",
)  # fmt: skip
_MOST_OR_NONE = {
    "utility": (100_000, "rounds of training"),
    "audit_draws": (10_000_000, "messages"),
    "non_adaptive": (1_000_000, "clips"),
    "draw": (2**63 - 1, "as a number"),
}
_TAKES = {"raw": "frames", "feature": "features"}


@dataclass(frozen=True, kw_only=True)
class Settings(ClientChoice):
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
        input_layout: in which the model takes clips, as `vleak.models.read_layout` has it; "auto" finds out.
        checkpoint: file with the weights of the model, as `vleak.models.load_checkpoint` takes it; or None.
        training_state: a key of `vleak.models.TRAINING_STATES`; "untrained" of a module or with a checkpoint
            is "given", which may also be said of a factory that loads its weights.
        defenses: instances, or as on the command line: a name alone is a sweep, "name:setting=value" one
            strength; "all" stands for every built-in one. "none" always runs beside them.
        attacks: instances, or as `vleak.attacks.ATTACKS` takes them, "name:setting=value" included; one that
            is named twice runs once, one that is of another pipeline not at all. None for those of
            ``DEFAULT_ATTACKS``.
        metrics: further scores of reconstructed clips: a name, an object with ``name`` and ``score``, or a
            function (reconstruction, truth) -> score.
        clips: clips to attack, or None for 12 or what the data gives.
        frames: T of every clip. size: its height and width. stride: distance of its frames in a video.
        segments: S, to which feature files of another length are brought.
        public_from: where public clips are from: "other-files", of which none is attacked, or "same-file",
            with other parts of the attacked videos.
        strict: whether a file of the data that cannot be read ends the run; otherwise it is skipped, and the
            record says so.
        reference_frames: how many frames of the scene the attacker holds, each count a row of its own.
        enhance: what brings reconstructed clips to twice the resolution, as `vleak.enhance.build_enhancer`
            takes it, or "none".
        restarts: of every attack whose text does not set them, iterations: of every restart; an instance has
            its own.
        budget: iterations that the attack "strongest" spends on trials for one model and defense.
        non_adaptive: clips behind every defense, spread over the data, that every attack which knows the
            defense also rebuilds without that knowledge; 0 for none.
        labels: "inferred" by the attack, or "granted" to it.
        utility: rounds of federated training under every defense, for the accuracy that is left; 0 for none.
        audit_draws: messages with canaries, and as many without, that bound each claimed epsilon from below;
            0 for none, None for as many as take some seconds.
        quick: whether the run is cut short: the first 8 clips, of every sweep the weakest and the strongest,
            and nothing is enhanced.
        seed: of everything random. draw: of clients and attacks alone, which another number draws anew.
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
    public_from: str = "other-files"
    reference_frames: Sequence[int] = (0,)
    enhance: str = "classical"
    restarts: int = 1
    iterations: int = 150
    budget: int = BUDGET
    non_adaptive: int = NON_ADAPTIVE_CLIPS
    labels: str = "inferred"
    utility: int = 0
    audit_draws: int | None = None
    quick: bool = False
    seed: int = 0
    draw: int = 0
    device: str = "auto"
    engine: str = "native"
    input_layout: str = "auto"
    checkpoint: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Check names and sizes, so that a wrong one costs no time."""
        self._take_shape()
        choices = (
            ("pipeline", self.pipeline, PIPELINES),
            ("training state", self.training_state, (*TRAINING_STATES, GIVEN)),
            ("device", self.device, DEVICES),
            ("engine", self.engine, ENGINES),
            ("labels", self.labels, LABELS),
            ("loss", self.loss, LOSSES),
            ("public_from", self.public_from, PUBLIC_FROM),
        )
        for kind, value, known in choices:
            if not isinstance(value, str) or value not in known:
                raise unknown_name(kind, str(value), known)
        for name in _WHOLE:
            if not _is_whole(value := getattr(self, name)):
                raise InputError(f"{argument(name, repr(value))}: expected a whole number")
        for name in ("clips", "audit_draws"):
            if (value := getattr(self, name)) is not None and not _is_whole(value):
                raise InputError(f"{argument(name, repr(value))}: expected a whole number, or None")
        if not isinstance(self.enhance, str):
            raise InputError(f"{argument('enhance', repr(self.enhance))}: expected a name, such as none")
        for name, (most, unit) in _MOST_OR_NONE.items():
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise InputError(f"{argument(name, getattr(self, name))}: expected 0 to {most:,} {unit}")
        for name in _MOST:
            _check_count(name, getattr(self, name))
        self.check_clients()
        self._cut_short()
        object.__setattr__(self, "reference_frames", numbers("reference_frames", self.reference_frames, 0))
        self._check_names()

    def _cut_short(self) -> None:
        """Leave out enhancement in a quick run; attacks stay whole, so that gains are those of any run."""
        if not isinstance(self.quick, bool):
            raise InputError(f"{argument('quick', repr(self.quick))}: expected True or False")
        if self.quick:
            object.__setattr__(self, "enhance", "none")

    def _take_shape(self) -> None:
        """Take frames and size from clips that were handed over, and enhance nothing that has no truth."""
        data = data_set(self.data)
        if isinstance(data, ClipSet):
            if data.clips.ndim != 5:
                shape = tuple(data.clips.shape)
                raise InputError(f"data: expected clips of shape (clip, 3, frame, size, size), got {shape}")
            object.__setattr__(self, "frames", data.clips.shape[2])
            object.__setattr__(self, "size", data.clips.shape[3])
        if data is not None and getattr(data, "fine", None) is None:
            object.__setattr__(self, "enhance", "none")

    def _check_names(self) -> None:
        """Refuse what the parsers of names would, and attacks that are of no pipeline of this run."""
        if "raw" in self.pipelines():
            module_name("model", self.model)
        self._check_model()
        if "feature" in self.pipelines():
            for kind, module, registry in (
                ("extractor", self.extractor, EXTRACTORS), ("head", self.head, HEADS)
            ):  # fmt: skip
                if isinstance(module, str):
                    on_trial(registry, module, partial(registry.parse, module))
                module_name(kind, module)
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
        self.metric_objects()

    def _check_model(self) -> None:
        """Refuse a layout, a checkpoint or a training state that the model has no use for."""
        self.layout()
        if self.checkpoint is not None:
            if "raw" not in self.pipelines():
                raise InputError(
                    f"{argument('checkpoint', self.checkpoint)}: is for the model of the raw pipeline; give "
                    f"{argument('pipeline', 'raw')}, or leave it out"
                )
            check_checkpoint(self.checkpoint)
        drawn = self.checkpoint is None and isinstance(self.model, str) and is_built_in(self.model)
        if self.training_state == GIVEN and (drawn or "raw" not in self.pipelines()):
            raise InputError(
                f"{argument('training_state', GIVEN)}: the weights are drawn here; give a `checkpoint`, or a "
                "`model` that brings its weights"
            )

    def layout(self) -> Layout | None:
        """Layout in which the model takes clips; None to find it out.

        Raises:
            InputError: there is no such layout.
        """
        if not isinstance(self.input_layout, str):
            raise InputError(f"{argument('input_layout', repr(self.input_layout))}: expected a text, or auto")
        return read_layout(self.input_layout)

    def state_of(self, pipeline: str) -> str:
        """Training state of a pipeline's model: "given" where it was handed over and is not trained here."""
        if self.training_state not in ("untrained", GIVEN):
            return self.training_state
        if pipeline == "feature":
            return GIVEN if is_finished(self.head) else "untrained"
        handed = self.checkpoint is not None or is_finished(self.model)
        return GIVEN if handed else self.training_state

    def pipelines(self) -> tuple[str, ...]:
        """Kinds of the pipelines that run."""
        return ("raw", "feature") if self.pipeline == "all" else (self.pipeline,)

    @cached_property
    def _chosen(self) -> tuple[ChosenAttack, ...]:
        """All attacks, each once."""
        names: tuple[AttackLike, ...] = tuple(self.attacks or ())
        if self.attacks is None:
            names = tuple(name for kind in self.pipelines() for name in DEFAULT_ATTACKS[kind])
        shared: dict[str, Setting] = {
            "iterations": self.iterations, "restarts": self.restarts, "budget": self.budget,
            "engine": self.engine_that_runs(),
        }  # fmt: skip
        chosen = [choose_attack(name, shared) for name in names]
        for attack in chosen:
            _check_attack(attack.attack)
        distinct: dict[str, ChosenAttack] = {}
        for name, attack in zip(names, chosen, strict=True):
            other = distinct.setdefault(attack.text, attack)
            # Two objects of one text may differ in what the text does not say.
            apart = other.attack is not attack.attack and not isinstance(name, str)
            if type(other.attack) is not type(attack.attack) or apart:
                raise InputError(f"attacks: two are called {attack.text!r}; give one of them another name")
        return tuple(distinct.values())

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
        return strengths_of(self.defenses, ends=self.quick)

    def metric_objects(self) -> dict[str, Metric]:
        """Further metrics by their names in records.

        Raises:
            InputError: a metric or a setting of it is unknown, or two have one name.
        """
        metrics = [metric_of(metric) for metric in self.metrics]
        if len(dict(metrics)) < len(metrics):
            raise InputError(
                f"metrics: expected a name for each, got {', '.join(name for name, _ in metrics)}"
            )
        return dict(metrics)

    def resolved(self) -> SettingsRecord:
        """Settings as records have them, with device and engine as they will run.

        Raises:
            InputError: a CUDA device was asked for and there is none.
        """
        attacks = [chosen.text for kind in self.pipelines() for chosen in self.attacks_on(kind)]
        given = {"data", "model", "extractor", "head", "defenses", "attacks", "metrics", "device", "engine"}
        return SettingsRecord.model_validate(
            {name: getattr(self, name) for name in SettingsRecord.model_fields if name not in given}
            | {
                "data": utf8_text(data_name(self.data)),
                "model": module_name("model", self.model),
                "extractor": module_name("extractor", self.extractor),
                "head": module_name("head", self.head),
                "defenses": [defense_text(defense) for defense in self.strengths()],
                "attacks": list(dict.fromkeys(attacks)),
                "metrics": list(self.metric_objects()),
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


def _check_count(name: str, count: int) -> None:
    """Refuse a count that no machine could run, or none.

    Raises:
        InputError: it is out of range.
    """
    if count < 1:
        raise InputError(f"{argument(name, count)}: expected at least 1")
    if count > _MOST[name]:
        raise InputError(f"{argument(name, count)}: expected at most {_MOST[name]}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_attack(attack: Attack) -> None:
    """Refuse what an attack cannot take, and restarts and iterations of its own beyond those of a run."""
    takes: object = attack.takes
    if not isinstance(takes, set | frozenset) or not takes <= set(_TAKES.values()):
        raise InputError(
            f"attacks: takes of {type(attack).__name__} is {takes!r:.80}, expected a set of "
            f"{' and '.join(_TAKES.values())}"
        )
    for name, value in attack.settings().items():
        if name in _MOST and _is_whole(value):
            _check_count(name, cast("int", value))
