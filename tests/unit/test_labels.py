"""Labels of the private clips are inferred from the update, exactly where that can be done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from attacking import (
    CLASSES,
    FRAMES,
    SIZE,
    built_in,
    observe,
    observe_clip,
    run,
    same_answer,
    scene,
    short,
)
from tiny import build
from torch import Tensor, nn

from vleak.attacks import infer_labels
from vleak.defenses import Compress, Defense, DpSgd, Prune
from vleak.models import SMALL_MODELS, build_model, train, training_steps
from vleak.seeds import generator

models = pytest.mark.parametrize("name", SMALL_MODELS)


@models
def test_label_of_one_clip_is_exact(name: str) -> None:
    for seed in range(3):
        for label in range(CLASSES):
            observation = observe(
                built_in(name, seed), scene().clips[label : label + 1], torch.tensor([label])
            )
            assert infer_labels(observation).tolist() == [label]


@models
@pytest.mark.parametrize(
    "labels", [[0, 1], [3, 3], [0, 0, 3], [1, 1, 1, 4], [4] * 8, [2, 5, 5, 0, 0, 0, 1, 3]]
)
@pytest.mark.parametrize("public", [True, False])
def test_labels_of_a_batch_are_counted_on_an_untrained_model(
    name: str, labels: list[int], public: bool
) -> None:
    for seed in range(2):
        known = {} if public else {"public_clips": None}
        observation = observe(
            built_in(name, seed), scene().clips[: len(labels)], torch.tensor(labels), **known
        )
        assert infer_labels(observation).tolist() == sorted(labels)


class Head(nn.Module):
    """A head on features of either sign, or on positive ones; with normalisation as wide as the classes."""

    def __init__(self, outputs: int = CLASSES, *, bias: bool, positive: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, CLASSES, 3, padding=1)
        self.norm = nn.GroupNorm(2, CLASSES)
        self.head = nn.Linear(CLASSES, outputs, bias=bias)
        self.squash = torch.relu if positive else torch.tanh

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.squash(self.norm(self.conv(clips))).mean((2, 3, 4)))


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_label_of_one_clip_with_and_without_a_bias(bias: bool, positive: bool) -> None:
    for sign in (1, -1):
        model = build(partial(Head, bias=bias, positive=positive))
        with torch.no_grad():
            model.norm.bias.fill_(sign * 0.3)
        for label in range(CLASSES):
            observation = observe(model, scene().clips[label : label + 1], torch.tensor([label]))
            assert infer_labels(observation).tolist() == [label], (sign, label)


class HeadFirst(Head):
    """The head is registered before layers that have a row a class too."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__(bias=bias, positive=True)
        self.conv, self.norm = self._modules.pop("conv"), self._modules.pop("norm")


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_is_the_last_that_runs(bias: bool) -> None:
    model = build(partial(HeadFirst, bias=bias))
    assert list(dict(model.named_parameters()))[-1] == "norm.bias"
    for label in range(CLASSES):
        for clip in scene().clips[:, None]:
            assert infer_labels(observe(model, clip, torch.tensor([label]))).tolist() == [label]


def test_an_auxiliary_head_that_runs_last_is_not_the_last_layer() -> None:
    class Auxiliary(Head):
        def __init__(self) -> None:
            super().__init__(bias=True, positive=True)
            self.aside = nn.Linear(CLASSES, CLASSES)

        def forward(self, clips: Tensor) -> Tensor:
            logits = super().forward(clips)
            self.aside(logits)
            return logits

    model = build(Auxiliary)
    for label in range(CLASSES):
        assert infer_labels(observe(model, scene().clips[:1], torch.tensor([label]))).tolist() == [label]


def test_labels_of_a_batch_without_a_bias() -> None:
    model = build(partial(Head, bias=False, positive=True))
    observation = observe(model, scene().clips[:4], torch.tensor([1, 1, 5, 1]))
    assert infer_labels(observation).tolist() == [1, 1, 1, 5]


def test_label_stays_below_the_classes_of_the_data() -> None:
    model = build(partial(Head, 40, bias=True, positive=True))
    for label in range(CLASSES):
        observation = observe(model, scene().clips[:1], torch.tensor([label]))
        assert infer_labels(observation).tolist() == [label]
        batch = observe(model, scene().clips[:3], torch.tensor([label] * 3))
        assert infer_labels(batch).tolist() == [label] * 3


def test_without_a_row_for_every_class_the_label_is_zero() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, clips: Tensor) -> Tensor:
            return self.scale * clips.flatten(1)[:, :CLASSES]

    observation = observe(Scaled(), scene().clips[:2], torch.tensor([3, 4]))
    assert infer_labels(observation).tolist() == [0, 0]


@pytest.mark.parametrize(
    "attack", ["matching", "deep_prior", pytest.param("decoder", marks=pytest.mark.slow), "inverter"]
)
def test_granted_labels_are_used_and_inferred_ones_where_none_are_granted(attack: str) -> None:
    right = scene().labels[:1]
    inferred = run(short(attack, 5), observe_clip())
    granted = run(short(attack, 5), observe_clip(labels=right))
    wrong = run(short(attack, 5), observe_clip(labels=(right + 1) % CLASSES))
    assert same_answer(inferred, granted)
    assert wrong.labels.tolist() == ((right + 1) % CLASSES).tolist()
    assert not torch.equal(wrong.clips, granted.clips)
    if attack == "matching":
        assert wrong.objective > 2 * granted.objective


@cache
def trained() -> nn.Module:
    """A model on which a wrong class is likely enough to be lost behind a defense."""
    model, data = build_model("c3d_tiny", frames=FRAMES, size=SIZE, classes=CLASSES, seed=0), scene()
    train(model, data.public_clips, data.public_labels, training_steps("early"), generator("labels"))
    return model


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize(
    "defense", [Compress(codec="qsgd", bits=2), Prune(fraction=0.999), DpSgd(noise_multiplier=0.1)]
)
def test_behind_a_defense_the_whole_update_tells_the_label(defense: Defense, public: bool) -> None:
    known = {} if public else {"public_clips": None}
    last_layer, whole = 0, 0
    for index in range(8):
        label, clip = torch.tensor([index % CLASSES]), scene().clips[index : index + 1]
        observation = observe(trained(), clip, label, defense, **known)
        whole += infer_labels(observation).tolist() == label.tolist()
        last_layer += infer_labels(replace(observation, channel=None)).tolist() == label.tolist()
    assert whole == 8
    assert last_layer < 8


def test_who_knows_a_defense_by_its_code_alone_asks_the_whole_update() -> None:
    for index in range(8):
        label, clip = torch.tensor([index % CLASSES]), scene().clips[index : index + 1]
        told = observe(trained(), clip, label, Compress(codec="qsgd", bits=2), rehearse=True)
        assert infer_labels(replace(told, channel=None)).tolist() == label.tolist()
