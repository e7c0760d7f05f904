"""Checks of a server's model: every plant is caught by the check that is after it, honest models pass."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from honest_models import NETWORKS, RECTIFIED, honest_model, trained_on
from planted_models import PLANTS, has_batch_norm, plants_for
from torch import Tensor, nn

import vleak
from vleak.data import ClipSet
from vleak.errors import InputError
from vleak.guarding import CHECKS, Finding, Thresholds, inspect_model

SEED = 11
"""Of weights and clips: neither the one that thresholds were chosen with nor that of the documentation."""


@cache
def scene() -> ClipSet:
    return vleak.load_clips("synthetic", clips=4, frames=4, size=16, seed=SEED, public=16)


def inspect(model: nn.Module, earlier: nn.Module | None = None) -> tuple[Finding, ...]:
    data = scene()
    return inspect_model(
        model, data.clips, data.labels, public_clips=data.public_clips, earlier=earlier, seed=SEED
    )


def alarms(found: tuple[Finding, ...]) -> set[str]:
    return {finding.check for finding in found if finding.alarm}


@pytest.mark.parametrize("plant", PLANTS)
def test_every_plant_is_caught(plant: str) -> None:
    make, check = PLANTS[plant]
    name = "cnn_gru:width=16" if check == "batch_norm" else "c3d_tiny:width=8"
    honest, data = honest_model(name, scene().clips, 6, SEED), scene()
    planted = make(honest, data.clips if check == "dominant_clip" else data.public_clips, SEED)
    found = inspect(planted, honest if check == "round_change" else None)
    assert check in alarms(found)
    assert found[0].alarm
    assert CHECKS[check].paper == found[0].paper or len(alarms(found)) > 1


@pytest.mark.parametrize("name", ["c3d_tiny:width=8", "cnn_gru:width=16", NETWORKS[10], RECTIFIED])
@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.slow), 20])
def test_honest_models_pass(name: str, steps: int) -> None:
    data, model = scene(), honest_model(name, scene().clips, 6, SEED)
    before = copy.deepcopy(model)
    trained_on(
        model,
        data.public_clips,
        data.public_labels,
        steps,
        SEED,
        "train" if has_batch_norm(model) else "eval",
    )
    found = inspect(model, before)
    assert alarms(found) == set()
    assert {finding.check for finding in found} == set(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_plants_are_caught_in_every_network(name: str) -> None:
    frames, size = (8, 24) if name.startswith("s3d") else (4, 16)
    data = vleak.load_clips("synthetic", clips=4, frames=frames, size=size, seed=SEED, public=16)
    model = honest_model(name, data.clips, 6, SEED)
    known = {"public_clips": data.public_clips, "seed": SEED}
    assert alarms(inspect_model(model, data.clips, data.labels, **known)) == set()
    for plant in plants_for(model):
        make, check = PLANTS[plant]
        planted = make(model, data.clips if check == "dominant_clip" else data.public_clips, SEED)
        earlier = model if check == "round_change" else None
        assert alarms(inspect_model(planted, data.clips, data.labels, earlier=earlier, **known)), plant


def test_weights_alone_are_enough_for_some_checks() -> None:
    found = inspect_model(honest_model("c3d_tiny:width=8", scene().clips, 6, SEED))
    assert {finding.check for finding in found} == {name for name, check in CHECKS.items() if not check.needs}


class Rows(nn.Module):
    """Two linear layers of given weights on the mean of each pixel over time."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(first.shape[1], len(first)), nn.Linear(len(first), 6)
        with torch.no_grad():
            self.first.weight.copy_(first)


@pytest.mark.parametrize(("parallel", "expected"), [(0, 0.0), (5, 4 / 9), (10, 1.0)])
def test_the_share_of_parallel_rows_is_counted(parallel: int, expected: float) -> None:
    rows = torch.eye(10, 12)
    rows[:parallel] = torch.linspace(1, 2, parallel)[:, None] * torch.ones(12) * torch.tensor([-1.0])
    with torch.random.fork_rng(devices=[]):
        found = inspect_model(Rows(rows))
    figures = {finding.check: finding for finding in found}
    assert figures["parallel_rows"].figure == pytest.approx(expected)
    assert figures["parallel_rows"].layer == "first" or not parallel


def test_figures_of_the_last_layer_are_those_of_its_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :2] = torch.tensor([3.0, 4.0])
        model[1].weight[1, 0], model[1].weight[2, :4] = 2.0, 0.5
        model[1].bias.copy_(torch.tensor([0.0, 7.0, 1.0]))
    figures = {finding.check: finding.figure for finding in inspect_model(model)}
    assert figures["class_trap"] == pytest.approx(5.0 / 1.0)  # norms 5, 2 and 1: the lower median of 2 and 1
    assert figures["class_bias"] == 6.0
    assert figures["feature_trap"] == 1.0


def test_changes_between_rounds_are_relative() -> None:
    model = honest_model("c3d_tiny:width=8", scene().clips, 6, SEED)
    earlier = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(1.5)
    (change,) = [f for f in inspect_model(model, earlier=earlier.state_dict()) if f.check == "round_change"]
    assert change.layer == "head.weight"
    assert change.figure == pytest.approx(0.5, rel=1e-5)
    state = {name: tensor for name, tensor in earlier.state_dict().items() if name != "head.weight"}
    (change,) = [f for f in inspect_model(model, earlier=state) if f.check == "round_change"]
    assert change.figure == math.inf
    assert change.alarm


def test_a_figure_that_is_no_number_is_an_alarm() -> None:
    assert Finding("class_trap", "head", math.nan, 4.0, "").alarm
    assert not Finding("class_trap", "head", 4.0, 4.0, "").alarm


def test_thresholds_can_be_switched_off() -> None:
    planted = PLANTS["class fishing"][0](
        honest_model("c3d_tiny:width=8", scene().clips, 6, 0), scene().clips, 0
    )
    off = {"class_trap": math.inf, "class_bias": math.inf}
    assert alarms(inspect_model(planted, thresholds=off)) == set()
    assert alarms(inspect_model(planted, thresholds=Thresholds())) == {"class_trap", "class_bias"}


def test_what_cannot_be_inspected_is_named() -> None:
    data, model = scene(), honest_model("c3d_tiny:width=8", scene().clips, 6, SEED)
    with pytest.raises(InputError, match="labels: expected one for each of 4 clips"):
        inspect_model(model, data.clips, data.labels[:1])
    with pytest.raises(InputError, match=r"model is str, expected a torch\.nn\.Module"):
        inspect_model("c3d_tiny")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown loss"):
        inspect_model(model, data.clips, data.labels, loss="mse")
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = math.inf
    with pytest.raises(InputError, match=r"'head.bias' holds NaN or infinity"):
        inspect_model(model)
