"""What the cells of a run share, made once: data, models, honest updates, and what needs no update at all."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import vleak
from vleak.attacks import NULL_ATTACKS, Attack, Knowledge, Observation, answerable, order_identifiable
from vleak.data import ClipSet, FeatureSet, first_of, load_data, recognise
from vleak.enhance import Enhanced, Enhancer, build_enhancer, plain
from vleak.errors import InputError
from vleak.evaluation.objects import Metric, build_module, data_name, data_set, module_name
from vleak.evaluation.settings import Settings
from vleak.evaluation.weights import extractor_for, network_for
from vleak.federated import LOSSES, Client, Update
from vleak.metrics import carrying_segments
from vleak.models import (
    TRAINING_STATES,
    BagPair,
    Extractor,
    accuracy,
    build_head,
    build_model,
    check_classifier,
    check_head,
    check_second_derivative,
    train,
    wrap_extractor,
)
from vleak.native import loader
from vleak.results.records import DataRecord, EnvironmentRecord, ModelRecord, RunHeader, SettingsRecord
from vleak.seeds import generator

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, cells finished, cells in all)."""

Answers = dict[str, Tensor]
"""What each null attacker says of one clip, by its name."""


@dataclass(frozen=True)
class Frames:
    """The private clips as pictures, and what is said of them without an update.

    Attributes:
        data: the clips.
        nulls: by number of reference frames, for every clip the answers (C, T, H, W).
        plain, enhanced: the same at twice the resolution, by interpolation and by the enhancer; None where
            nothing is enhanced.
        enhance: brings an answer to twice the resolution; method: its name.
    """

    data: ClipSet
    nulls: dict[int, list[Answers]]
    plain: dict[int, list[Answers]] | None = None
    enhanced: dict[int, list[Answers]] | None = None
    enhance: Callable[[Tensor], Enhanced] | None = None
    method: str = "none"


@dataclass(frozen=True)
class Features:
    """The private clips as feature matrices.

    Attributes:
        truth: (N, S, F).
        places: for every clip the bag of its pair that it is; None where a sample is one bag.
        carrying: (N, S) bool, segments of the truth that the loss lets into the gradient.
        nulls: by number of reference frames, for every clip the answers (S, F) of attackers without update.
        extractor: which made them; None where they come from files, which nothing leads back from.
    """

    truth: Tensor
    places: list[int] | None
    carrying: Tensor
    nulls: dict[int, list[Answers]]
    extractor: Extractor | None


@dataclass(frozen=True)
class Bench:
    """All that the cells of one pipeline share. The truth lives here; an attack never gets this object.

    Attributes:
        settings: of the run, resolved.
        attacks: attacks that were given as instances, by their text. metrics: further metrics by name.
        pipeline: "raw" or "feature".
        name: of the model, as records have it.
        data: where the clips come from.
        model: what is trained, and whose update leaks.
        loss: its name.
        private: (N, *clip shape), what the client holds; public: (M, *clip shape).
        labels: (N,) int64, as the loss sees them. classes: how many there are.
        honest: the undefended update of every clip; hypotheses: that under every label, none where they would
            not fit in memory, or two clips are alike and no update could tell them apart.
        order_identifiable: whether the update depends on the order of frames or segments at all.
        frames, features: what answers are judged by. facts: who says what everybody knows of the features.
    """

    settings: SettingsRecord
    attacks: Mapping[str, Attack]
    metrics: Mapping[str, Metric]
    pipeline: str
    name: str
    data: ClipSet | FeatureSet
    model: nn.Module
    loss: str
    private: Tensor
    public: Tensor
    labels: Tensor
    classes: int
    honest: list[Update]
    hypotheses: list[list[Update]]
    order_identifiable: bool
    frames: Frames | None = None
    features: Features | None = None
    facts: Extractor | FeatureSet | None = None

    def rivals(self, clip: int) -> list[int]:
        """Return the clips among which one is to be recognised: all that public knowledge does not exclude.

        Which bag of a pair is the anomalous one is public, so only clips of the same kind are.
        """
        if self.loss != "ranking":
            return list(range(len(self.private)))
        return torch.nonzero(self.labels == self.labels[clip]).flatten().tolist()

    @property
    def place(self) -> str:
        """Model and training state, as cells are named by them."""
        return f"{self.name}.{self.settings.training_state}"


_LINK_BYTES = 2**31
"""Updates under all labels are kept up to this size; beyond it linkage is not measured."""


def prepare(settings: Settings, tell: Progress) -> tuple[list[Bench], RunHeader]:
    """Load the data and make a bench for every pipeline; also the header of the results.

    Raises:
        InputError: data or models cannot be used, or do not fit together.
        CapabilityError: a model has no second derivative.
    """
    tell("loading clips", 0, 0)
    data = _load(settings)
    frames = None
    if isinstance(data, ClipSet):
        tell("preparing the pictures", 0, 0)
        frames = _frames(data, settings)
    tell("preparing the model", 0, 0)
    made = []
    if "raw" in settings.pipelines():
        assert isinstance(data, ClipSet)
        assert frames is not None
        made.append(_raw(settings, data, frames, tell))
    if "feature" in settings.pipelines():
        made.append(_feature(settings, data, frames, tell))
    header = _header(settings.resolved(), data, [facts for _, facts in made])
    return [bench for bench, _ in made], header


def _load(settings: Settings) -> ClipSet | FeatureSet:
    data = data_set(settings.data)
    source = data_name(settings.data) if data is None else ""
    of_features = isinstance(data, FeatureSet) or (data is None and recognise(source) == "features")
    if of_features:
        _refuse_frames(settings)
    if data is not None:
        return _checked_references(first_of(data, settings.clips), max(settings.reference_frames))
    return load_data(
        source, clips=settings.clips, frames=settings.frames, size=settings.size,
        stride=settings.stride, seed=settings.seed, references=max(settings.reference_frames),
        fine=settings.enhance != "none" and not of_features,
        segments=settings.segments,
    )  # fmt: skip


def _checked_references(data: ClipSet | FeatureSet, count: int) -> ClipSet | FeatureSet:
    """Refuse more reference frames than a data set that was handed over has."""
    held = 0 if isinstance(data, FeatureSet) or data.references is None else data.references.shape[2]
    if count > held:
        raise InputError(
            f"reference_frames={count}: the data holds {held}; give a ClipSet with more `references`"
        )
    return data


def _refuse_frames(settings: Settings) -> None:
    """Refuse what needs frames of data that has none."""
    if "raw" in settings.pipelines():
        raise InputError(
            f"data={data_name(settings.data)}: holds features, which have no frames; give pipeline=feature"
        )
    if max(settings.reference_frames):
        raise InputError(
            f"reference_frames={max(settings.reference_frames)}: {data_name(settings.data)} holds features, "
            "which have no frames; leave it out"
        )


# ---------------------------------------------------------------------------------------------------------
# The raw pipeline


def _raw(settings: Settings, data: ClipSet, frames: Frames, tell: Progress) -> tuple[Bench, ModelRecord]:
    classes = len(data.classes)
    model = _model(settings, classes)
    check_classifier(model, data.clips[:1], classes)
    steps = TRAINING_STATES[settings.training_state]
    train(model, data.public_clips, data.public_labels, steps, generator(settings.seed, "training"))
    check_classifier(model, data.clips[:1], classes)
    name = module_name("model", settings.model)
    facts: dict[str, Any] = {"name": name, "pipeline": "raw"} | _model_facts(settings, model)
    facts |= _accuracies(model, data.public_clips, data.public_labels, data.clips, data.labels)
    facts["chance"] = 1 / classes
    model = model.to(settings.torch_device())
    check_second_derivative(model, data.clips[:1])  # where it will run: a device may lack what the CPU has
    tell("computing updates", 0, 0)
    bench = _bench(
        settings, "raw", name, data, model, "cross_entropy", data.clips, data.public_clips,
        data.labels, classes,
    )  # fmt: skip
    return replace(bench, frames=frames), ModelRecord(**facts)


def _model(settings: Settings, classes: int) -> nn.Module:
    sizes = {"frames": settings.frames, "size": settings.size, "classes": classes}
    if isinstance(settings.model, str):
        return build_model(settings.model, seed=settings.seed, **sizes)
    made = build_module("model", settings.model, sizes | {"num_classes": classes}, settings.seed)
    return made.eval()


# ---------------------------------------------------------------------------------------------------------
# The feature pipeline


def _feature(
    settings: Settings, data: ClipSet | FeatureSet, frames: Frames | None, tell: Progress
) -> tuple[Bench, ModelRecord]:
    tell("preparing the extractor", 0, 0)
    extractor, accuracy_of_extractor, known, truth, public = _read_features(settings, data)
    labels, public_labels, classes = _targets(settings.loss, data)
    private, held, places = _samples(settings, truth, public, labels, public_labels)
    model = _head(settings, truth, classes)
    train(model, held, public_labels, TRAINING_STATES[settings.training_state],
          generator(settings.seed, "training", "head"), LOSSES[settings.loss])  # fmt: skip
    check_head(model, private[:1], settings.loss, classes)
    name = module_name("extractor", settings.extractor)
    name = "files" if extractor is None else re.sub(r"=[^,]*/", "=", name)  # no folders
    name = f"{name}>{module_name('head', settings.head)}>{settings.loss}"
    facts: dict[str, Any] = {"name": name, "pipeline": "feature"}
    facts["extractor_accuracy"] = accuracy_of_extractor
    facts |= {"segments": truth.shape[1], "features": truth.shape[2]} | _model_facts(settings, model)
    facts |= _accuracies(model, held, public_labels, private, labels) | {"chance": 1 / classes}
    model = model.to(settings.torch_device())
    check_second_derivative(model, private[:1], LOSSES[settings.loss])
    tell("computing updates", 0, 0)
    bench = _bench(settings, "feature", name, data, model, settings.loss, private, held, labels, classes)
    bench = replace(bench, frames=frames, facts=known)
    features = Features(
        truth=truth,
        places=places,
        carrying=_carrying(bench, places),
        nulls=_segment_nulls(bench, extractor, frames, places, len(truth)),
        extractor=extractor,
    )
    return replace(bench, features=features), ModelRecord(**facts)


def _read_features(
    settings: Settings, data: ClipSet | FeatureSet
) -> tuple[Extractor | None, float | None, Extractor | FeatureSet, Tensor, Tensor]:
    """Return the extractor and its accuracy, who knows facts of it, and private and public features."""
    if isinstance(data, FeatureSet):
        return None, None, data, data.features, data.public_features
    frames, size = settings.frames, settings.size
    if isinstance(settings.extractor, str):
        found, accuracy_of_extractor = extractor_for(settings.extractor, frames=frames, size=size)
    else:
        net = build_module("extractor", settings.extractor, {"size": size, "frames": frames}, settings.seed)
        name = module_name("extractor", settings.extractor)
        found, accuracy_of_extractor = wrap_extractor(name, net, size=size, frames=frames), None
    found = found.to(settings.torch_device())
    return found, accuracy_of_extractor, found, extract(found, data.clips), extract(found, data.public_clips)


def _head(settings: Settings, truth: Tensor, classes: int) -> nn.Module:
    outputs = classes if settings.loss == "cross_entropy" else None
    segments, features = truth.shape[1:]
    if isinstance(settings.head, str):
        head = build_head(
            settings.head, segments=segments, features=features, outputs=outputs, seed=settings.seed
        )
    else:
        facts = {"segments": segments, "features": features, "outputs": outputs}
        head = build_module("head", settings.head, facts, settings.seed).eval()
    return BagPair(head) if settings.loss == "ranking" else head


def _samples(
    settings: Settings, truth: Tensor, public: Tensor, labels: Tensor, public_labels: Tensor
) -> tuple[Tensor, Tensor, list[int] | None]:
    """Return what a loss takes for samples, private and public, and which bag of its pair a clip is."""
    if settings.loss != "ranking":
        return truth, public, None
    private, places = _pairs(truth, labels)
    held = _public_pairs(public, public_labels)
    if settings.training_state != "untrained" and not len(held):
        raise InputError(
            "loss 'ranking': training needs public clips of both kinds, normal and anomalous, and there are "
            "none; give more files, or training_state=untrained"
        )
    return private, held, places


def _carrying(bench: Bench, places: list[int] | None) -> Tensor:
    """Return (N, S) bool, which segments of every clip have a gradient."""
    device, loss = next(bench.model.parameters()).device, LOSSES[bench.loss]
    found = [
        carrying_segments(bench.model, loss, sample.to(device), label.to(device)).view(sample.shape[:-1])
        for sample, label in zip(bench.private, bench.labels, strict=True)
    ]
    return torch.stack(found if places is None else [f[p] for f, p in zip(found, places, strict=True)])


def extract(extractor: Extractor, clips: Tensor) -> Tensor:
    """Return the features (N, S, F) of clips (N, C, T, H, W), on the CPU; N may be 0."""
    device = next(extractor.parameters()).device
    if not len(clips):
        some = extract(extractor, clips.new_full((1, *clips.shape[1:]), 0.5))
        return some[:0]
    with torch.no_grad():
        return torch.cat([extractor(part.to(device)).cpu() for part in torch.split(clips, 16)])


def _targets(loss: str, data: ClipSet | FeatureSet) -> tuple[Tensor, Tensor, int]:
    """Return the labels of private and public clips as a loss sees them, and how many kinds there are."""
    if loss == "cross_entropy" or isinstance(data, FeatureSet):
        return data.labels, data.public_labels, len(data.classes)
    anomalous = torch.tensor(anomalous_classes(data.classes))
    return anomalous[data.labels].long(), anomalous[data.public_labels].long(), 2


def anomalous_classes(classes: Sequence[str]) -> list[bool]:
    """Return for every class whether it counts as anomalous where a loss knows only normal and anomalous.

    Whatever is not called normal, as in UCF-Crime; where nothing is, the second half of the list.
    """
    normal = ["normal" in name.lower() for name in classes]
    if any(normal) and not all(normal):
        return [not each for each in normal]
    return [index >= len(classes) // 2 for index in range(len(classes))]


def _pairs(bags: Tensor, labels: Tensor) -> tuple[Tensor, list[int]]:
    """Return for every bag its pair (N, 2, S, F), anomalous first, and which of the two it is itself."""
    kinds = [torch.nonzero(labels == label).flatten().tolist() for label in (0, 1)]
    if not all(kinds):
        raise InputError(
            "loss 'ranking': expected normal and anomalous clips, found only one kind; give more clips, or "
            "another `loss`"
        )
    # The companion of the k-th normal bag is the k-th anomalous one, whose own is the next normal one: no two
    # pairs are alike.
    pairs, met = [], [0, 1]
    for bag, label in zip(bags, labels.tolist(), strict=True):
        others = kinds[1 - label]
        other = bags[others[met[label] % len(others)]]
        met[label] += 1
        pairs.append(torch.stack([bag, other] if label else [other, bag]))
    return torch.stack(pairs), [1 - label for label in labels.tolist()]


def _public_pairs(bags: Tensor, labels: Tensor) -> Tensor:
    """Return the pairs (M, 2, S, F) of public bags; none where they are all of one kind."""
    if not bool((labels == 0).any() and (labels == 1).any()):
        return bags.new_empty(0, 2, *bags.shape[1:])
    return _pairs(bags, labels)[0]


def _segment_nulls(
    bench: Bench, extractor: Extractor | None, frames: Frames | None, places: list[int] | None, clips: int
) -> dict[int, list[Answers]]:
    """Return what is said of every clip's features without an update: of them alone, and of guessed clips."""
    model, update = nothing_sent()
    observation = Observation(model, update, features_knowledge(bench))
    unused = generator("null")
    alone = {
        f"{name} of features": NULL_ATTACKS[name]().reconstruct(observation, unused).clips[0]
        for name in answerable(observation.knowledge)
    }

    def own(clip: int) -> Answers:
        return alone if places is None else {name: pair[places[clip]] for name, pair in alone.items()}

    if frames is None or extractor is None:
        return {0: [own(clip) for clip in range(clips)]}
    guessed = _each_once(frames.nulls, lambda clip: extract(extractor, clip[None])[0])
    return {
        count: [answers | own(clip) for clip, answers in enumerate(every)] for count, every in guessed.items()
    }


def features_knowledge(bench: Bench, **more: Any) -> Knowledge:
    """Return what is granted about the features of any clip."""
    assert bench.facts is not None
    return Knowledge(
        clip_shape=tuple(bench.private.shape[1:]),
        batch_size=1,
        classes=bench.classes,
        public_clips=bench.public,
        nonnegative=bench.facts.nonnegative,
        unit_norm=bench.facts.unit_norm,
        **more,
    )


def nothing_sent() -> tuple[nn.Module, Update]:
    """Return a model of nothing and its update, which attackers without an update are shown."""
    model = nn.ParameterList([torch.zeros(1)])
    return model, Update({name: torch.zeros(p.shape) for name, p in model.named_parameters()}, 0, {})


# ---------------------------------------------------------------------------------------------------------
# Both


def _bench(
    settings: Settings, pipeline: str, name: str, data: ClipSet | FeatureSet, model: nn.Module, loss: str,
    private: Tensor, public: Tensor, labels: Tensor, classes: int,
) -> Bench:  # fmt: skip
    client = Client(model, loss=loss)
    return Bench(
        settings=settings.resolved(),
        attacks=settings.attack_objects(),
        metrics=settings.metric_objects(),
        pipeline=pipeline,
        name=name,
        data=data,
        model=model,
        loss=loss,
        private=private,
        public=public,
        labels=labels,
        classes=classes,
        honest=_honest_updates(client, private, labels, settings.seed),
        hypotheses=_hypotheses(client, private, labels, 1 if loss == "ranking" else classes, settings.seed)
        if _all_differ(private)
        else [],
        order_identifiable=order_identifiable(model, tuple(private.shape[1:]), loss=loss),
    )


def _all_differ(private: Tensor) -> bool:
    """Return whether no two samples are alike."""
    return len({sample.numpy().tobytes() for sample in private}) == len(private)


def _honest_updates(client: Client, private: Tensor, labels: Tensor, seed: int) -> list[Update]:
    """Return the undefended update of every clip, under these labels (N,)."""
    pairs = zip(private, labels, strict=True)
    return [client.update(clip[None], label[None], generator(seed, "honest")) for clip, label in pairs]


def _hypotheses(client: Client, private: Tensor, labels: Tensor, kinds: int, seed: int) -> list[list[Update]]:
    """Return for every candidate its update under every label; nothing where they would not fit in memory."""
    size = 4 * sum(p.numel() for p in client.model.parameters()) * len(private) * kinds
    if size > _LINK_BYTES:
        return []
    every = [torch.full_like(labels, label) for label in range(kinds)]
    return [
        list(each) for each in zip(*(_honest_updates(client, private, y, seed) for y in every), strict=True)
    ]


def null_names(bench: Bench, references: int) -> tuple[str, ...]:
    """Return the null attackers that can answer with so many reference frames."""
    if bench.frames is not None:
        return answerable(frames_knowledge(bench.frames.data, 0, references))
    return answerable(features_knowledge(bench))


def frames_knowledge(data: ClipSet, index: int, references: int, **more: Any) -> Knowledge:
    """Return what is granted about the frames of one clip, whatever the pipeline."""
    return Knowledge(
        clip_shape=tuple(data.clips.shape[1:]),
        batch_size=1,
        classes=len(data.classes),
        public_clips=data.public_clips,
        references=references_of(data, index, references),
        **more,
    )


def references_of(data: ClipSet, index: int, count: int) -> Tensor | None:
    """Return the first so many reference frames (1, C, K, H, W) of a clip, None for none."""
    if not count or data.references is None:
        return None
    return data.references[index : index + 1, :, :count].clone()  # a view would reach those of other clips


def _frames(data: ClipSet, settings: Settings) -> Frames:
    nulls = {count: _null_answers(data, count, settings.seed) for count in settings.reference_frames}
    if settings.enhance == "none":
        return Frames(data, nulls)
    enhance = _enhancer(settings.enhance, data)
    return Frames(
        data,
        nulls,
        plain=_each_once(nulls, plain),
        enhanced=_each_once(nulls, lambda clip: enhance(clip).clip),
        enhance=enhance,
        method=settings.enhance,
    )


def _enhancer(name: str, data: ClipSet) -> Enhancer:
    return build_enhancer(name, network=network_for(data) if name == "network" else None)


def _each_once(
    nulls: dict[int, list[Answers]], change: Callable[[Tensor], Tensor]
) -> dict[int, list[Answers]]:
    """Change every answer; those that several clips share, once."""
    seen: dict[int, Tensor] = {}

    def changed(clip: Tensor) -> Tensor:
        if id(clip) not in seen:
            seen[id(clip)] = change(clip)
        return seen[id(clip)]

    return {
        count: [{name: changed(clip) for name, clip in answers.items()} for answers in every]
        for count, every in nulls.items()
    }


def _null_answers(data: ClipSet, references: int, seed: int) -> list[Answers]:
    """Return what each null attacker answers of every clip, (C, T, H, W) by name."""
    model, update = nothing_sent()
    names, unused = answerable(frames_knowledge(data, 0, references)), generator(seed, "null")

    def answers(index: int, chosen: list[str]) -> Answers:
        observation = Observation(model, update, frames_knowledge(data, index, references))
        return {name: NULL_ATTACKS[name]().reconstruct(observation, unused).clips[0] for name in chosen}

    same = answers(0, [name for name in names if not name.startswith("reference")])
    own = [name for name in names if name.startswith("reference")]
    return [same | (answers(index, own) if own else {}) for index in range(len(data.clips))]


def _model_facts(settings: Settings, model: nn.Module) -> dict[str, Any]:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return {
        "training_state": settings.training_state,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_steps": TRAINING_STATES[settings.training_state],
        "weights_sha256": digest.hexdigest(),
    }


def _accuracies(
    model: nn.Module, public: Tensor, public_labels: Tensor, private: Tensor, labels: Tensor
) -> dict[str, float | None]:
    return {
        "train_accuracy": accuracy(model, public, public_labels),
        "held_out_accuracy": accuracy(model, private, labels),
    }


def _header(resolved: SettingsRecord, data: ClipSet | FeatureSet, models: Sequence[ModelRecord]) -> RunHeader:
    return RunHeader(
        environment=EnvironmentRecord(
            vleak=vleak.__version__,
            torch=torch.__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            extension=loader.status().state,
            device=resolved.device,
        ),
        settings=resolved,
        data=_data_record(resolved, data),
        models=tuple(models),
    )


def _data_record(resolved: SettingsRecord, data: ClipSet | FeatureSet) -> DataRecord:
    if isinstance(data, ClipSet):
        private, public = data.clips, data.public_clips
    else:
        private, public = data.features, data.public_features
    return DataRecord(
        name=data.name,
        clips=len(private),
        public_clips=len(public),
        public_source=data.public_source,
        classes=data.classes,
        labels=tuple(data.labels.tolist()),
        names=data.names,
        notes=(*data.notes, *_notes(resolved, data)),
        sha256=hashlib.sha256(private.numpy().tobytes() + public.numpy().tobytes()).hexdigest(),
    )


def _notes(resolved: SettingsRecord, data: ClipSet | FeatureSet) -> list[str]:
    binary = resolved.loss != "cross_entropy" and resolved.pipeline != "raw"
    if not binary or isinstance(data, FeatureSet):
        return []
    named = [name for name, odd in zip(data.classes, anomalous_classes(data.classes), strict=True) if odd]
    return [f"feature pipeline: {', '.join(named)} count as anomalous"]
