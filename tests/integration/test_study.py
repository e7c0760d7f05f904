"""What a study asks, how it judges, and that its page says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vleak.errors import InputError
from vleak.results.statistics import mean_interval
from vleak.seeds import generator
from vleak.study import study as studies
from vleak.study.study import Claim, Comparison, Study, judge, plan

CLIPS = [f"c{index}" for index in range(8)]
SPREAD = [0.01 * index for index in range(8)]


def comparison(low: float | None) -> Comparison:
    values = [] if low is None else [low + spread for spread in SPREAD]
    return Comparison("a over b", mean_interval(values), "dB", ())


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((1.0, 2.0), "holds"),
        ((1.0, -2.0), "mixed"),
        ((1.0, 0.0 - 0.035), "mixed"),  # the interval holds zero
        ((-1.0, -2.0), "does not hold"),
        ((-0.035,), "does not hold"),
        ((None,), "does not hold"),
    ],
)
def test_a_verdict_is_what_the_intervals_say(effects: tuple[float | None, ...], verdict: str) -> None:
    assert Claim("k", "n", tuple(map(comparison, effects))).verdict == verdict


def test_shares_of_variance_of_known_tables() -> None:
    additive = {(a, b): 3.0 * (a == "x") + 4.0 * (b == "u") for a in "xy" for b in "uv"}
    assert studies._shares(additive) == pytest.approx((9 / 25, 16 / 25))
    # All of it interplay: of the three degrees of freedom each factor has one, and explains nothing.
    crossed = {(a, b): float((a == "x") == (b == "u")) for a in "xy" for b in "uv"}
    assert studies._shares(crossed) == pytest.approx((-0.5, -0.5))
    assert studies._shares(dict.fromkeys(additive, 1.0)) == (0.0, 0.0)


def test_a_factor_of_many_levels_is_not_favoured() -> None:
    """Shares of pure noise are 0 on the whole, however many levels a factor has."""
    numbers = generator("noise")
    drawn = []
    for _ in range(300):
        noise = torch.randn(2, 5, generator=numbers).tolist()
        drawn.append(studies._shares({(str(a), str(b)): noise[a][b] for a in range(2) for b in range(5)}))
    for share in zip(*drawn, strict=True):
        assert abs(sum(share) / len(share)) < 0.05


def test_differences_are_clip_by_clip() -> None:
    more = {clip: (10.0 * place + 1.0 + SPREAD[place], "m") for place, clip in enumerate(CLIPS)}
    less = {clip: (10.0 * place, "l") for place, clip in reversed(list(enumerate(CLIPS)))}
    found = studies._difference("x", {**more, "other": (5.0, "o")}, less, "dB")
    assert found.effect.n == 8
    assert found.effect.mean == pytest.approx(1.035)
    assert found.effect.low is not None
    assert found.effect.low > 1.0
    assert set(found.cells) == {"m", "l"}


# --- judging planted results ------------------------------------------------------------------------------


def planted(
    gain: dict[str, float], cosine: dict[str, float] | None = None, *, quick: bool = True
) -> dict[str, dict[str, Any]]:
    """Return results of every run of a plan; runs whose name starts with a key have that gain."""
    results = {}
    for name, settings in plan(Study(quick=quick)).items():
        level = next((value for key, value in gain.items() if name.startswith(key)), 5.0)
        depth = next((value for key, value in (cosine or {}).items() if key in name), 0.1)
        cells = []
        for defense, references in [
            (d.label, k) for d in settings.strengths() for k in settings.reference_frames
        ]:
            for place, clip in enumerate(CLIPS):
                own = level + SPREAD[place] - (1.0 if defense != "none" else 0.0)
                cells.append(
                    {
                        "id": f"{defense}/{references}/{clip}",
                        "clip": clip,
                        "status": "ok",
                        "defense": {"label": defense, "name": defense},
                        "attack": {"name": "matching"},
                        "knowledge": {"defense": True, "reference_frames": references},
                        "scores": {
                            "psnr_gain_db": own - references,
                            "motion_psnr_db": own + references,
                            "psnr_db": own + references,
                            "identified": True,
                            "candidates": 8,
                            "segments": {
                                "cosine_gain": depth + SPREAD[place] / 10,
                                "recovered": 1, "carrying": 2, "segments": 4,
                            },
                        },
                        "enhanced": {"psnr_change_db": SPREAD[place] - 1, "identification_moved": "none"},
                    }
                )  # fmt: skip
        models = [{"parameters": 100}]  # as many in all, as width 32 and depth 3 have
        results[name] = {"cells": cells, "models": models}
    return results


def verdicts(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {claim.key: claim.verdict for claim in judge(results)}


def test_each_claim_can_hold_and_can_fail() -> None:
    hinder = verdicts(planted({"raw": 9.0}))
    assert hinder["extractors"] == "holds"
    assert verdicts(planted({"raw": 1.0}))["extractors"] == "does not hold"
    assert verdicts(planted({"raw": 6.0, "frame_cnn": 9.0}))["extractors"] == "mixed"
    assert hinder["enhancement"] == "does not hold"
    assert hinder["references"] == "mixed"  # planted: more where it moves, less beyond the frame
    assert hinder["compression"] == "holds"
    simple = planted({"raw, width 8": 9.0, "raw, depth 1": 9.0}, {"linear": 0.9, "mlp:depth=4": 0.1})
    assert verdicts(simple)["complexity"] == "holds"
    assert verdicts(planted({}))["complexity"] == "does not hold"


def test_the_whole_plan_can_be_judged() -> None:
    assert verdicts(planted({"raw": 9.0}, quick=False))["extractors"] == "holds"


def test_an_attack_that_failed_on_most_clips_is_not_the_strongest() -> None:
    results = planted({"raw": 9.0})
    lucky = copy.deepcopy(results["compressed"]["cells"][0])
    lucky["attack"]["name"] = "other"
    lucky["scores"]["psnr_gain_db"] = 99.0
    results["compressed"]["cells"].append(lucky)
    (claim,) = [claim for claim in judge(results) if claim.key == "compression"]
    assert all(each.effect.n == 8 for each in claim.comparisons)


def test_the_factor_that_decides_is_found() -> None:
    decides = planted({}, {"c3d_small": 0.9, "frame_cnn": 0.1})
    assert verdicts(decides)["factors"] == "holds"
    loss = planted({}, {"bce": 0.9, "ranking": 0.1})
    assert verdicts(loss)["factors"] != "holds"
    (claim,) = [claim for claim in judge(loss) if claim.key == "factors"]
    assert "loss 100 %" in claim.remarks[0]


def test_failed_and_blind_cells_do_not_count() -> None:
    results = planted({"raw": 9.0})
    spoiled = copy.deepcopy(results)
    for run in spoiled.values():
        extra = copy.deepcopy(run["cells"][0])
        extra |= {"clip": "c99", "status": "failed: x"}
        blind = copy.deepcopy(run["cells"][0])
        blind["knowledge"]["defense"] = False
        blind["scores"]["psnr_gain_db"] = 99.0
        run["cells"] += [extra, blind]
    for before, after in zip(judge(results), judge(spoiled), strict=True):
        assert before.record()["comparisons"] == after.record()["comparisons"]


def test_a_claim_is_json_by_the_contract() -> None:
    for claim in judge(planted({})):
        record = json.loads(json.dumps(claim.record(), allow_nan=False))
        assert set(record) >= {"name", "effect", "interval", "verdict", "cells"}
        assert record["verdict"] in ("holds", "does not hold", "mixed")
        assert record["cells"]


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(InputError, match="at least 8 clips"):
        plan(Study(clips=7))


def test_runs_have_folders_of_their_own() -> None:
    names = [studies.folder(name) for name in plan(Study())]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name for name in names)
