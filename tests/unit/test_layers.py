"""What each layer of an update counts in gradient matching: of the update alone, and where it pays."""

from __future__ import annotations

import pytest
import torch
from attacking import best_baseline, observe, observe_clip, psnr, run

from vleak.attacks import Matching
from vleak.attacks.matching.problems import balancing_scales
from vleak.data import load_clips
from vleak.defenses import Prune
from vleak.errors import InputError
from vleak.models import build_model


def test_scales_are_one_over_the_root_of_the_norm_and_keep_the_whole() -> None:
    target = {"large": torch.full((4,), 8.0), "small": torch.full((4,), 0.5)}
    scales = balancing_scales(target, None)
    assert scales["small"] / scales["large"] == pytest.approx(4.0)
    energy = sum(float((scales[name] * t).square().sum()) for name, t in target.items())
    assert energy == pytest.approx(4 * 64 + 4 * 0.25)


def test_only_what_is_matched_has_a_part_in_a_scale() -> None:
    target = {"large": torch.tensor([3.0, 90.0]), "small": torch.tensor([3.0, 0.0])}
    masks = {name: torch.tensor([True, False]) for name in target}
    assert balancing_scales(target, masks) == pytest.approx({"large": 1.0, "small": 1.0})


def test_a_tensor_without_a_gradient_is_held_to_that_within_reason() -> None:
    scales = balancing_scales({"some": torch.ones(4), "none": torch.zeros(4)}, None)
    assert 1 < scales["none"] / scales["some"] < 100
    assert balancing_scales({"none": torch.zeros(4)}, None) == {"none": 1.0}


@pytest.mark.slow
def test_balanced_layers_rebuild_more_through_a_deep_network() -> None:
    data = load_clips("synthetic", clips=4, frames=8, size=32, seed=1000, public=24)
    model = build_model("r3d_18:width=16", frames=8, size=32, classes=6, seed=1000).eval()
    truth, gains = data.clips[0], {"equal": 0.0, "balanced": 0.0}
    observation = observe(model, truth[None], data.labels[:1], public_clips=data.public_clips)
    for layers in gains:
        attack = Matching(regulariser="spectrum", noise=10.0, iterations=60, layers=layers)  # type: ignore[arg-type]
        gains[layers] = psnr(run(attack, observation).clips[0], truth) - best_baseline(observation, truth)
    assert gains["balanced"] > gains["equal"] + 0.5
    assert gains["balanced"] > 1


@pytest.mark.parametrize("settings", [{"distance": "l2"}, {"rule": "lbfgs"}, {"regulariser": "spectrum"}])
def test_balanced_layers_go_with_other_settings(settings: dict[str, str]) -> None:
    observation = observe_clip(defense=Prune(fraction=0.9))
    answer = run(Matching(iterations=12, layers="balanced", **settings), observation)  # type: ignore[arg-type]
    assert torch.isfinite(answer.clips).all()
    assert answer.engine == "native"


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(InputError, match="balanced"):
        Matching(layers="weighted")  # type: ignore[arg-type]
