"""What an evaluation writes down, that its settings alone decide it, that no attack sees the truth."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from videos import noise, write_video

from runs import DP, TINY, journal_length, tiny, without_time
from vleak.attacks import ATTACKS, NULL_ATTACKS, Attack, Observation, Reconstruction
from vleak.certificates.gaussian import identification_bound
from vleak.data import ClipSet, load_clips
from vleak.errors import InputError
from vleak.evaluation import StoppedError, bench, evaluate
from vleak.evaluation import cell as one_cell
from vleak.federated import Client, Update
from vleak.native import operators
from vleak.results import read_results, summarise
from vleak.results.flags import BEATS_UNDEFENDED, FAILS_UNDEFENDED, NO_BETTER, WEAKER_BEATS, mark

NOTHING = type(None)
NUMBER = (float, NOTHING)
DEFENSES = (DP, "prune:fraction=0.9", "compress:codec=qsgd,bits=4")

FIDELITY = {"psnr_db": float, "ssim": float}
SCORES = FIDELITY | {
    "psnr_gain_db": float,
    "ssim_gain": float,
    "motion_psnr_db": NUMBER,
    "motion_psnr_gain_db": NUMBER,
    "motion_ssim": NUMBER,
    "residual_correlation": float,
    "identified": bool,
    "rank": int,
    "candidates": int,
    "label_correct": bool,
    "linked": (bool, NOTHING),
    "link_rank": (int, NOTHING),
    "null": {"grey": FIDELITY, "public_mean": FIDELITY},
    "best_null": str,
    "order": {"psnr_db": float, "matched_psnr_db": float, "frames_in_place": float},
    "segments": NOTHING,
    "null_identified": NOTHING,
}
SHARPER = {
    **dict.fromkeys(["psnr_db", "psnr_gain_db", "ssim", "detail_rms"], float),
    **dict.fromkeys(["motion_psnr_db", "invented"], NUMBER),
    "identified": bool,
    "rank": int,
}
CELL = {
    "id": str,
    "media": str,
    "media_enhanced": str,
    "order_identifiable": bool,
    "enhanced": {
        "method": str,
        "noise": float,
        "steps": [str],
        "before": SHARPER,
        "after": SHARPER,
        "psnr_change_db": float,
        "psnr_gain_change_db": float,
        "identification_moved": str,
    },
    "pipeline": str,
    "model": str,
    "training_state": str,
    "defense": {
        "name": str,
        "label": str,
        "settings": dict,
        "epsilon": NUMBER,
        "delta": NUMBER,
        "unit": (str, NOTHING),
        "adjacency": (str, NOTHING),
        "training_epsilon": NUMBER,
    },
    "attack": {
        "name": str,
        "adaptive": bool,
        "iterations": int,
        "restarts": int,
        "seconds": float,
        "engine": str,
        "objective": NUMBER,
        "nan_at": (int, NOTHING),
    },
    "knowledge": {
        "labels": str,
        "reference_frames": int,
        "batch_size": int,
        "defense": bool,
        "public_clips": int,
    },
    "clip": str,
    "clip_index": int,
    "seed": int,
    "scores": SCORES,
    "certificate": ({"kind": str, "bound": float}, NOTHING),
    "update": {"bytes": int, "cosine_to_undefended": float, "changed_fraction": float},
    "flags": [str],
    "status": str,
}
RESULTS = {
    "schema_version": int,
    "environment": dict.fromkeys(["vleak", "torch", "python", "platform", "extension", "device"], str),
    "versions": {"vleak": str, "torch": str},
    "settings": {
        **dict.fromkeys(["data", "pipeline", "model", "training_state", "labels", "device", "engine"], str),
        **dict.fromkeys(["extractor", "head", "loss", "enhance"], str),
        **dict.fromkeys(["frames", "size", "stride", "segments", "restarts", "iterations", "seed"], int),
        "reference_frames": [int],
        "clips": (int, NOTHING),
        "defenses": [str],
        "attacks": [str],
    },
    "data": {
        **dict.fromkeys(["name", "public_source", "sha256"], str),
        **dict.fromkeys(["clips", "public_clips"], int),
        **{key: [str] for key in ("classes", "names", "notes")},
        "labels": [int],
    },
    "models": [
        {
            **dict.fromkeys(["name", "pipeline", "training_state", "weights_sha256"], str),
            **dict.fromkeys(["parameters", "training_steps"], int),
            **dict.fromkeys(["train_accuracy", "held_out_accuracy"], NUMBER),
            "chance": float,
        }
    ],
    "planned_cells": int,
    "cells": [CELL],
}


def check(value: Any, schema: Any, where: str) -> None:
    """Check keys and types exactly: a bool is no int, an int no float."""
    if isinstance(schema, dict):
        assert type(value) is dict, where
        assert value.keys() == schema.keys(), where
        for key in schema:
            check(value[key], schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert type(value) is list, where
        for place, item in enumerate(value):
            check(item, schema[0], f"{where}[{place}]")
    elif isinstance(schema, tuple):
        if type(value) not in schema:
            check(value, schema[0], where)
    else:
        assert type(value) is schema, f"{where} is {value!r}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, evaluate(tiny(defenses=DEFENSES), folder, workers=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run what several tests compare with: nothing but DP-SGD, one worker, from start to end."""
    return evaluate(tiny(), tmp_path_factory.mktemp("alone") / "run", workers=1)


def of(results: dict[str, Any], attack: str = "matching", defense: str | None = None) -> list[dict[str, Any]]:
    return [
        cell
        for cell in results["cells"]
        if cell["attack"]["name"] == attack and defense in (None, cell["defense"]["name"])
    ]


# --- what is written --------------------------------------------------------------------------------------


def test_results_follow_the_schema(finished: tuple[Path, dict[str, Any]]) -> None:
    check(finished[1], RESULTS, "results")
    assert finished[1]["schema_version"] == 1
    assert {cell["status"] for cell in finished[1]["cells"]} == {"ok"}


def test_results_on_the_disk_are_those_returned(finished: tuple[Path, dict[str, Any]]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    folder, results = finished
    text = (folder / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == results == read_results(folder)
    assert len(summarise(results)) == 2 + 1 + len(DEFENSES)


def test_every_cell_that_was_asked_for_is_there_once(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[1]
    spelled = ["none", *DEFENSES]
    wanted = [("none", "grey"), ("none", "public_mean"), *((defense, "matching") for defense in spelled)]
    names = results["data"]["names"]
    assert [cell["id"] for cell in results["cells"]] == [
        f"c3d_tiny.untrained/{defense}/{attack}/{name}" for defense, attack in wanted for name in names
    ]
    assert results["planned_cells"] == len(results["cells"]) == 3 * len(wanted)
    assert [cell["clip_index"] for cell in results["cells"]] == [0, 1, 2] * len(wanted)
    assert [cell["clip"] for cell in results["cells"]] == names * len(wanted)
    # The seed is that of the message: one a clip and defense, the same for every attack.
    messages = {(cell["defense"]["label"], cell["clip"]): cell["seed"] for cell in results["cells"]}
    assert len(set(messages.values())) == len(messages)
    assert all(cell["seed"] == messages[cell["defense"]["label"], cell["clip"]] for cell in results["cells"])
    assert results["settings"]["defenses"] == spelled


def test_pictures_are_the_scored_ones(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    truth = np.load(folder / "clips.npy", allow_pickle=False)
    assert (truth.dtype, truth.shape) == (np.uint8, (3, 3, 4, 16, 16))
    assert len({cell["media"] for cell in results["cells"]}) == len(results["cells"])
    for cell in results["cells"]:
        picture = np.load(folder / cell["media"], allow_pickle=False)
        assert (picture.dtype, picture.shape) == (np.uint8, truth.shape[1:])
        error = (picture / 255.0 - truth[cell["clip_index"]] / 255.0) ** 2
        psnr = float(np.mean([-10 * math.log10(error[:, t].mean()) for t in range(4)]))
        assert psnr == pytest.approx(cell["scores"]["psnr_db"], abs=0.05)  # 8 bits of what was scored
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "cells.jsonl",
        "clips.npy",
        "reconstructions",
        "results.json",
        "run.json",
    ]


def test_updates_are_measured(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[1]
    for cell in of(results, defense="none"):
        assert cell["update"]["cosine_to_undefended"] == pytest.approx(1, abs=1e-12)
        assert cell["update"]["changed_fraction"] == 0
        assert cell["update"]["bytes"] == 4 * results["models"][0]["parameters"]
    for cell in of(results, defense="dp"):
        assert cell["update"]["changed_fraction"] > 0.99
        assert cell["update"]["cosine_to_undefended"] < 0.5
    for cell in of(results, defense="prune"):
        assert 0.1 < cell["update"]["changed_fraction"] <= 0.9  # what was 0 before is 0 after
        assert cell["update"]["bytes"] < 0.2 * 4 * results["models"][0]["parameters"]


def test_only_dp_has_a_certificate(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for cell in finished[1]["cells"]:
        proven = cell["defense"]["name"] == "dp"
        assert (cell["certificate"] is not None) == proven
        assert all((cell["defense"][key] is not None) == proven for key in ("epsilon", "delta", "unit"))
    clipped = evaluate(tiny(defenses=("dp:noise_multiplier=0",), clips=1), tmp_path / "run")
    assert [(cell["certificate"], cell["defense"]["epsilon"]) for cell in of(clipped)] == [(None, None)] * 2


def test_the_bound_is_the_stated_one(finished: tuple[Path, dict[str, Any]]) -> None:
    from statistics import NormalDist

    expected = NormalDist().cdf(NormalDist().inv_cdf(1 / 3) + 1 / 0.1)
    assert [cell["certificate"]["bound"] for cell in of(finished[1], defense="dp")] == [
        pytest.approx(expected)
    ] * 3


def test_every_attack_meets_the_same_message(tmp_path: Path) -> None:
    results = evaluate(tiny(attacks=("matching", "matching_blind")), tmp_path / "run")
    told, untold = of(results, "matching"), of(results, "matching_blind")
    assert len(told) == len(untold) == 6
    for one, other in zip(told, untold, strict=True):
        assert one["seed"] == other["seed"]
        assert one["update"] == other["update"]
        assert one["scores"]["link_rank"] == other["scores"]["link_rank"]


def test_a_granted_label_narrows_the_certificate(tmp_path: Path) -> None:
    results = evaluate(tiny(clips=8, iterations=1, labels="granted"), tmp_path / "run")
    labels = results["data"]["labels"]
    for cell in of(results, defense="dp"):
        alike = labels.count(labels[cell["clip_index"]])
        assert cell["certificate"]["bound"] == pytest.approx(identification_bound(alike, 0.1))


def test_linkage_does_not_know_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(update: Update, candidates: Any, knowledge: Any) -> Tensor:
        asked.extend(len(each) for each in candidates)
        return torch.zeros(len(candidates))

    monkeypatch.setattr(one_cell, "link_scores", spy)
    evaluate(tiny(iterations=1), tmp_path / "inferred")
    assert set(asked) == {6}  # every candidate under each of the six labels
    asked.clear()
    evaluate(tiny(iterations=1, labels="granted"), tmp_path / "granted")
    assert set(asked) == {1}


def test_a_guarantee_beyond_json_is_none(tmp_path: Path) -> None:
    results = evaluate(tiny(defenses=("dp:noise_multiplier=1e-200",), clips=2), tmp_path / "run")
    assert [cell["defense"]["epsilon"] for cell in of(results, defense="dp")] == [None, None]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


# --- the baselines ----------------------------------------------------------------------------------------


def test_none_always_runs_and_on_the_same_weights(
    finished: tuple[Path, dict[str, Any]], alone: dict[str, Any], tmp_path: Path
) -> None:
    plain = evaluate(tiny(defenses=("none",)), tmp_path / "run", workers=1)
    assert plain["models"] == finished[1]["models"] == alone["models"]
    cells = without_time({"cells": of(plain)})
    assert len(cells) == 3
    assert cells == without_time({"cells": of(finished[1], defense="none")})
    assert cells == without_time({"cells": of(alone, defense="none")})


def test_null_attackers_are_in_every_run(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", noise(8, side=24))
    for settings, expected in (
        (tiny(defenses=("none",)), {"grey", "public_mean"}),
        (tiny(defenses=("none",), data=str(tmp_path / "a.mkv"), clips=2, stride=1), {"grey"}),
    ):
        results = evaluate(settings, tmp_path / f"run{len(expected)}")
        null = {name for name in NULL_ATTACKS if of(results, name)}
        assert null == expected
        for name in null:
            cells = of(results, name)
            assert len(cells) == results["data"]["clips"]
            assert {cell["defense"]["name"] for cell in cells} == {"none"}
            assert {cell["knowledge"]["defense"] for cell in cells} == {False}
            assert all(cell["scores"]["psnr_gain_db"] <= 0 for cell in cells)
        assert all(set(cell["scores"]["null"]) == expected for cell in results["cells"])


def test_who_knows_nothing_identifies_at_most_one_clip(tmp_path: Path) -> None:
    results = evaluate(tiny(clips=8, defenses=("none",), iterations=1), tmp_path / "run")
    for name in ("grey", "public_mean"):
        scores = [cell["scores"] for cell in of(results, name)]
        assert sum(score["identified"] for score in scores) <= 1
        assert sorted(score["rank"] for score in scores) == sorted({score["rank"] for score in scores})
        assert {score["linked"] for score in scores} == {None}


# --- nothing but the settings decides ---------------------------------------------------------------------


def test_same_settings_same_scores_whatever_the_workers(alone: dict[str, Any], tmp_path: Path) -> None:
    again = evaluate(tiny(), tmp_path / "again", workers=1)
    parallel = evaluate(tiny(), tmp_path / "parallel", workers=3)
    assert without_time(again) == without_time(parallel) == without_time(alone)
    for part in ("settings", "data", "models", "planned_cells"):
        assert again[part] == parallel[part] == alone[part]
    media = [cell["media"] for cell in alone["cells"]]
    assert [(tmp_path / "again" / name).read_bytes() for name in media] == [
        (tmp_path / "parallel" / name).read_bytes() for name in media
    ]


def test_another_seed_is_another_run(alone: dict[str, Any], tmp_path: Path) -> None:
    other = without_time(evaluate(tiny(seed=1), tmp_path / "run"))
    same = [name for name, cell in without_time(alone).items() if other[name]["scores"] == cell["scores"]]
    assert same == []


def test_a_cell_does_not_depend_on_the_other_clips(alone: dict[str, Any], tmp_path: Path) -> None:
    few = without_time(evaluate(tiny(clips=2), tmp_path / "run"))
    many = without_time(alone)
    for name, cell in few.items():
        for key in ("psnr_db", "ssim", "motion_psnr_db", "null", "label_correct"):
            assert cell["scores"][key] == many[name]["scores"][key]
        assert cell["update"] == many[name]["update"]


def test_stopped_and_resumed_is_the_same(alone: dict[str, Any], tmp_path: Path) -> None:
    stop, seen = threading.Event(), list[int]()

    def halt(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 8:
            stop.set()

    with pytest.raises(StoppedError, match=r"^stopped with [89] of 12 cells finished$"):
        evaluate(tiny(), tmp_path, progress=halt, stop=stop, workers=2)
    part = without_time(read_results(tmp_path))
    assert 8 <= len(part) < 12
    assert part == {name: cell for name, cell in without_time(alone).items() if name in part}
    assert (tmp_path / "results.json").exists()

    resumed = list[int]()
    results = evaluate(tiny(), tmp_path, progress=lambda what, done, total: resumed.append(done))
    assert without_time(results) == without_time(alone)
    assert [done for done in resumed if done] == list(range(len(part), 13))  # nothing ran twice


def test_the_callers_event_is_left_alone(tmp_path: Path) -> None:
    stop = threading.Event()
    evaluate(tiny(clips=1, defenses=("none",)), tmp_path / "run", stop=stop)
    assert not stop.is_set()


def test_a_finished_run_is_not_run_again(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, results = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "reconstructions").iterdir()}
    again = evaluate(tiny(defenses=DEFENSES), folder, workers=1)
    assert again == results  # times of the attacks included
    assert {path: path.stat().st_mtime_ns for path in (folder / "reconstructions").iterdir()} == before


def test_killed_and_resumed_is_the_same(tmp_path: Path) -> None:
    settings = {"iterations": 80, "defenses": (DP,)}
    script = (
        "import pathlib, runs, vleak.evaluation as e\n"
        f"e.evaluate(runs.tiny(**{settings!r}), pathlib.Path({str(tmp_path / 'killed')!r}), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1] / "support")
    try:
        deadline = time.monotonic() + 60
        while journal_length(tmp_path / "killed") < 7 and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert 7 <= journal_length(tmp_path / "killed") < 12
    assert not (tmp_path / "killed" / "results.json").exists()
    with open(tmp_path / "killed" / "cells.jsonl", "ab") as journal:
        journal.write(b'{"id": "c3d_tiny.untrained/dp:')  # as a kill within a write leaves it
    assert 7 <= len(read_results(tmp_path / "killed")["cells"]) < 12
    resumed = evaluate(tiny(**settings), tmp_path / "killed", workers=1)
    whole = evaluate(tiny(**settings), tmp_path / "whole", workers=2)
    assert without_time(resumed) == without_time(whole)


def test_another_run_in_the_folder_is_refused_before_anything_slow(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: object, **named: object) -> ClipSet:
        raise AssertionError("clips were loaded")

    monkeypatch.setattr(bench, "load_data", slow)
    with pytest.raises(InputError, match=r"holds another run: settings defenses is \['none', 'dp:noise_mult"):
        evaluate(tiny(), finished[0])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        evaluate(tiny(), tmp_path / "file")


def test_other_videos_under_the_same_name_are_another_run(tmp_path: Path) -> None:
    settings = tiny(data=str(tmp_path / "a.mkv"), clips=2, stride=1, defenses=("none",))
    write_video(tmp_path / "a.mkv", noise(16, side=24))
    evaluate(settings, tmp_path / "run")
    write_video(tmp_path / "a.mkv", noise(16, side=28))
    with pytest.raises(InputError, match="holds another run: data sha256 is"):
        evaluate(settings, tmp_path / "run")


# --- cells that fail --------------------------------------------------------------------------------------


def test_a_failed_defense_is_recorded_beside_the_others(tmp_path: Path) -> None:
    settings = tiny(model="odd_models:batch_norm", defenses=(DP, "prune:fraction=0.9"))
    results = evaluate(settings, tmp_path / "run")
    for cell in results["cells"]:
        if cell["defense"]["name"] == "dp":
            assert cell["status"].startswith(
                "failed: dp: layer 'norm' is BatchNorm3d, which mixes clips; use"
            )
            check(
                cell,
                CELL
                | dict.fromkeys(["media", "media_enhanced", "scores", "enhanced", "update"], NOTHING)
                | {"attack": dict},
                "cell",
            )
        else:
            assert cell["status"] == "ok"
    rows = {row.defense: row for row in summarise(results) if not row.null}
    assert [(row.n, row.failed) for row in rows.values()] == [(3, 0), (0, 3), (3, 0)]
    assert journal_length(tmp_path / "run") == results["planned_cells"] == 15


class Fragile(Attack):
    """Fails on the second clip, with an error that nobody expected, until it is mended."""

    name: ClassVar[str] = "matching"
    mended: ClassVar[bool] = False
    objective: ClassVar[float] = 1.0

    def __init__(self, **options: Any) -> None:
        self.options = options

    def _reconstruct(self, observation: Observation, *_: Any) -> Reconstruction:
        shape = observation.knowledge.batch_shape
        if not self.mended and float(observation.update.tensors["head.bias"].sum()) == 1:
            raise ZeroDivisionError("first line\nsecond line")
        labels = torch.zeros(1, dtype=torch.long)
        return Reconstruction(clips=torch.full(shape, 0.25), labels=labels, objective=self.objective)


class Marked(Client):
    """Writes into the update of every defense which clip it is of."""

    clips: ClassVar[list[Tensor]] = []

    def update(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> Update:
        made = super().update(clips, labels, generator)
        second = torch.equal(clips, self.clips[0])
        return Update(made.tensors | {"head.bias": torch.eye(6)[0] * second}, made.wire_bytes, made.metadata)


def test_an_unexpected_error_costs_one_cell_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "matching", Fragile)
    monkeypatch.setattr(one_cell, "Client", Marked)
    monkeypatch.setattr(Marked, "clips", [load_clips("synthetic", clips=3, frames=4, size=16).clips[1:2]])
    settings = tiny(defenses=("none",))
    first = evaluate(settings, tmp_path / "run")
    assert [c["status"] for c in of(first)] == ["ok", "failed: ZeroDivisionError: first line", "ok"]
    monkeypatch.setattr(Fragile, "mended", True)
    second = evaluate(settings, tmp_path / "run")
    assert [cell["status"] for cell in second["cells"]] == ["ok"] * 9
    assert len(read_results(tmp_path / "run")["cells"]) == 9


@pytest.mark.parametrize("objective", [math.inf, -math.inf, math.nan])
def test_an_objective_that_json_cannot_say_is_none(
    objective: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "matching", Fragile)
    monkeypatch.setattr(Fragile, "mended", True)
    monkeypatch.setattr(Fragile, "objective", objective)
    results = evaluate(tiny(defenses=("none",), clips=1), tmp_path / "run")
    assert [cell["attack"]["objective"] for cell in of(results)] == [None]


# --- the truth is not in it -------------------------------------------------------------------------------


class Spy(Attack):
    """Keeps every observation and answers grey."""

    name: ClassVar[str] = "matching"
    seen: ClassVar[list[Observation]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options

    def _reconstruct(self, observation: Observation, *_: Any) -> Reconstruction:
        self.seen.append(observation)
        shape = observation.knowledge.batch_shape
        return Reconstruction(clips=torch.full(shape, 0.5), labels=torch.zeros(1, dtype=torch.long))


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Observation]:
    monkeypatch.setitem(ATTACKS, "matching", Spy)
    monkeypatch.setattr(Spy, "seen", [])
    return Spy.seen


def tensors(thing: object, visited: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from an object through its attributes and items."""
    visited = set() if visited is None else visited
    if id(thing) in visited or isinstance(thing, type):
        return
    visited.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        yield from tensors(thing.grad, visited)
    inner = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    inner += [getattr(thing, "__self__", None), getattr(thing, "__func__", None)]
    inner += [held.cell_contents for held in getattr(thing, "__closure__", None) or ()]
    inner += list(thing.values()) if isinstance(thing, dict) else []
    inner += list(thing) if isinstance(thing, list | tuple | set) else []
    for each in inner:
        yield from tensors(each, visited)


def holds(tensor: Tensor, clip: Tensor) -> bool:
    """Tell whether one of the clips in a tensor is this clip (C, T, H, W), in whatever axes."""
    rows = (
        tensor.detach().cpu().float().reshape(-1, clip.numel()) if tensor.numel() % clip.numel() == 0 else []
    )
    return any(torch.equal(row, clip.flatten()) for row in rows)


def videos(folder: Path) -> str:
    folder.mkdir()
    for place in range(3):
        write_video(folder / f"{place}.mkv", np.roll(noise(16, side=24), 40 * place, axis=2))
    return str(folder)


@pytest.mark.parametrize("source", ["synthetic", "videos"])
def test_the_truth_is_not_in_the_observation(source: str, tmp_path: Path, spied: list[Observation]) -> None:
    data = source if source == "synthetic" else videos(tmp_path / "videos")
    evaluate(tiny(data=data, defenses=DEFENSES, stride=1, clips=3), tmp_path / "run", workers=1)
    truth = load_clips(data, clips=3, frames=4, size=16, stride=1)
    assert len(spied) == 12
    assert len(truth.public_clips) > 0
    for observation in spied:
        reached = list(tensors(observation))
        assert len(reached) > 2 * len(observation.update.tensors)  # weights and update at least
        assert any(holds(tensor, truth.public_clips[0]) for tensor in reached)  # the search does find clips
        for clip in truth.clips:
            assert not any(holds(tensor, clip) for tensor in reached)
        assert observation.knowledge.labels is None


def test_public_clips_do_not_depend_on_the_clip_under_attack(
    tmp_path: Path, spied: list[Observation]
) -> None:
    for count in (2, 3):
        evaluate(tiny(clips=count, defenses=("none",)), tmp_path / f"run{count}", workers=1)
    first = spied[0].knowledge.public_clips
    assert first is not None
    assert len(spied) == 5
    for observation in spied:
        assert observation.knowledge.public_clips is not None
        assert torch.equal(observation.knowledge.public_clips, first)
        others = {"public_clips": None, "simulate": None}
        assert dataclasses.replace(observation.knowledge, **others) == dataclasses.replace(
            spied[0].knowledge, **others
        )


def test_a_client_trains_on_a_model_of_its_own(tmp_path: Path, spied: list[Observation]) -> None:
    evaluate(tiny(), tmp_path / "run", workers=1)
    assert len({id(observation.model) for observation in spied}) == len(spied)
    states = [observation.model.state_dict() for observation in spied]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert not any(p.grad is not None for observation in spied for p in observation.model.parameters())


def test_labels_are_granted_when_asked_for(tmp_path: Path, spied: list[Observation]) -> None:
    results = evaluate(tiny(labels="granted", defenses=("none",)), tmp_path / "run", workers=1)
    given = [observation.knowledge.labels for observation in spied]
    assert [label.tolist() for label in given if label is not None] == [
        [label] for label in results["data"]["labels"]
    ]
    assert {cell["knowledge"]["labels"] for cell in results["cells"]} == {"granted"}
    assert all(
        cell["scores"]["label_correct"] for name in ("grey", "public_mean") for cell in of(results, name)
    )


class Elsewhere(Client):
    """Sends the update of another clip, whatever clip it is given."""

    def update(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> Update:
        ramp = torch.linspace(0.1, 0.9, clips.numel()).view_as(clips)
        return super().update(ramp, torch.zeros_like(labels), generator)


def test_a_planted_truth_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(restarts=2, iterations=6, training_state="early", defenses=DEFENSES)
    asked = {"clips": 3, "frames": 4, "size": 16}
    here, there = (load_clips("synthetic", seed=seed, fine=True, **asked) for seed in (0, 1))
    planted = dataclasses.replace(here, clips=there.clips, fine=there.fine, labels=here.labels.flip(0))
    monkeypatch.setattr(one_cell, "Client", Elsewhere)
    monkeypatch.setattr(bench, "Client", Elsewhere)
    found = []
    for name, data in (("here", here), ("planted", planted)):
        monkeypatch.setattr(bench, "load_data", lambda *given, data=data, **named: data)
        found.append(evaluate(settings, tmp_path / name, workers=1))
    ours, theirs = (without_time(results) for results in found)
    assert found[0]["models"][0]["weights_sha256"] == found[1]["models"][0]["weights_sha256"]
    for name, cell in ours.items():
        assert (tmp_path / "here" / cell["media"]).read_bytes() == (
            tmp_path / "planted" / cell["media"]
        ).read_bytes()
        assert cell["attack"] == theirs[name]["attack"]
        assert cell["scores"]["psnr_db"] != theirs[name]["scores"]["psnr_db"]  # the scorer does see it


# --- flags ------------------------------------------------------------------------------------------------


def scored(defense: str, gain: float, identified: bool = False, **changes: Any) -> dict[str, Any]:
    return {
        "defense": {"name": defense},
        "attack": {"name": "matching"},
        "clip": "a@0",
        "scores": {"psnr_gain_db": gain, "identified": identified},
        "flags": [],
        "status": "ok",
    } | changes


@pytest.mark.parametrize(
    ("undefended", "defended", "expected"),
    [
        ((-0.1, False), (-2.0, False), ([NO_BETTER], [FAILS_UNDEFENDED])),
        ((0.0, False), (5.0, True), ([NO_BETTER], [FAILS_UNDEFENDED])),
        ((-0.1, True), (-2.0, False), ([], [])),
        ((0.1, False), (1.0, False), ([], [])),
        ((6.0, True), (7.1, True), ([], [BEATS_UNDEFENDED])),
        ((6.0, True), (7.0, True), ([], [])),
    ],
)
def test_flags_of_a_pair(
    undefended: tuple[float, bool], defended: tuple[float, bool], expected: tuple[list[str], list[str]]
) -> None:
    cells = [scored("none", *undefended), scored("dp", *defended)]
    for _ in range(2):  # marking twice adds nothing
        mark(cells)
        assert (cells[0]["flags"], cells[1]["flags"]) == expected


@pytest.mark.parametrize(
    ("matching", "blind", "raised"),
    [
        ((1.0, False), (2.1, False), True),
        ((1.0, False), (2.0, False), False),
        ((5.0, False), (1.0, True), True),  # less gain, yet recognised
        ((5.0, True), (1.0, True), False),
        ((1.0, True), (2.1, False), True),
        ((5.0, True), (-1.0, False), False),
    ],
)
@pytest.mark.parametrize("defense", ["none", "dp"])
def test_a_weaker_attack_that_wins_is_flagged(
    defense: str, matching: tuple[float, bool], blind: tuple[float, bool], raised: bool
) -> None:
    cells = [scored(defense, *matching), scored(defense, *blind, attack={"name": "matching_blind"})]
    for _ in range(2):
        mark(cells)
        assert cells[0]["flags"] == ([WEAKER_BEATS] if raised else [])
        assert WEAKER_BEATS not in cells[1]["flags"]


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": "b@0"},
        {"defense": {"name": "dp", "settings": {"noise_multiplier": 2.0}}},
        {"defense": {"name": "prune", "settings": {"noise_multiplier": 1.0}}},
        {"status": "failed: why", "scores": None},
        {"attack": {"name": "other"}},
    ],
)
def test_a_weaker_attack_is_compared_on_the_same_message_alone(changes: dict[str, Any]) -> None:
    defense = {"defense": {"name": "dp", "settings": {"noise_multiplier": 1.0}}}
    blind = {**scored("dp", 9.0, True), **defense, "attack": {"name": "matching_blind"}}
    same = [scored("dp", 0.0) | defense, blind]
    mark(same)
    assert same[0]["flags"] == [WEAKER_BEATS]
    cells = [scored("dp", 0.0) | defense, blind | changes]
    mark(cells)
    assert cells[0]["flags"] == []


def test_flags_compare_like_with_like() -> None:
    cells = [
        scored("none", -1.0, flags=["objective did not fall"]),
        scored("dp", -1.0, clip="b@0"),
        scored("dp", -1.0, attack={"name": "other"}),
        scored("dp", 9.0, status="failed: why", scores=None),
        scored("none", -1.0, attack={"name": "grey"}),
    ]
    mark(cells)
    assert [cell["flags"] for cell in cells] == [["objective did not fall", NO_BETTER], [], [], [], []]


def test_flags_are_in_the_results(tmp_path: Path, spied: list[Observation]) -> None:
    results = evaluate(tiny(), tmp_path / "run")
    for cell in of(results, defense="none"):
        assert cell["flags"] == ([] if cell["scores"]["identified"] else [NO_BETTER])
    assert FAILS_UNDEFENDED in {flag for cell in of(results, defense="dp") for flag in cell["flags"]}


# --- the process around it --------------------------------------------------------------------------------


def process_state() -> list[object]:
    name, keys, *rest = np.random.get_state()
    return [
        torch.get_rng_state().tolist(),
        (name, np.asarray(keys).tolist(), *rest),
        random.getstate(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        operators.backend(torch.device("cpu")),
        len(sys.path),
        threading.active_count(),
    ]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("model", ["c3d_tiny", "odd_models:plain"])
def test_the_process_is_left_as_it_was(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1] / "support")
    evaluate(tiny(model=model, defenses=(DP,)), tmp_path / "warm")  # imports have their own effects, once
    before = process_state()
    assert torch.get_num_threads() == 2
    evaluate(tiny(model=model, defenses=(DP,), training_state="early"), tmp_path / "run", workers=2)
    assert process_state() == before


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_an_error(tmp_path: Path) -> None:
    before = process_state()
    with pytest.raises(InputError, match="holds NaN"):
        evaluate(tiny(model="odd_models:nan_weights"), tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):
        evaluate(tiny(data="nowhere"), tmp_path / "run")
    assert process_state() == before
    assert not (tmp_path / "run").exists()


def test_scores_do_not_depend_on_the_state_of_the_process(alone: dict[str, Any], tmp_path: Path) -> None:
    torch.rand(3), random.random(), np.random.default_rng(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = evaluate(tiny(), tmp_path / "run", workers=2)
    finally:
        torch.set_num_threads(threads)
    assert without_time(results) == without_time(alone)


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "featur"}, r"unknown pipeline 'featur'; did you mean feature\?"),
        ({"pipeline": "feature", "head": "mpl"}, r"unknown head 'mpl'; did you mean mlp"),
        ({"pipeline": "feature", "extractor": "c3d"}, "unknown extractor 'c3d'"),
        ({"loss": "bec"}, r"unknown loss 'bec'; did you mean bce\?"),
        ({"enhance": "classic"}, r"unknown enhancer 'classic'; did you mean classical\?"),
        ({"reference_frames": (0, -1)}, "reference_frames='0,-1': expected numbers from 0"),
        ({"reference_frames": ()}, "reference_frames='': expected numbers from 0"),
        ({"attacks": ("low_rank",)}, "attacks=low_rank: takes features, which the raw pipeline has none of"),
        ({"training_state": "lat"}, r"unknown training state 'lat'; did you mean late\?"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"engine": "nativ"}, r"unknown engine 'nativ'; did you mean native\?"),
        ({"labels": "given"}, "unknown labels 'given'"),
        ({"attacks": ("matchin",)}, "unknown attack 'matchin'; did you mean matching"),
        ({"defenses": ("prun",)}, r"unknown defense 'prun'; did you mean prune\?"),
        ({"restarts": 0}, "restarts=0: expected at least 1"),
        ({"iterations": -1}, "iterations=-1: expected at least 1"),
    ],
)
def test_wrong_settings_are_known_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_at_least_one(workers: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"workers={workers}: expected at least 1"):
        evaluate(tiny(), tmp_path / "run", workers=workers)
    assert not (tmp_path / "run").exists()


def test_an_attack_named_twice_runs_once(tmp_path: Path, spied: list[Observation]) -> None:
    settings = tiny(attacks=("matching", "matching"), defenses=("none", "none"))
    assert settings == tiny(attacks=("matching",), defenses=("none", "none"))
    assert settings.resolved()["attacks"] == ["matching"]
    evaluate(settings, tmp_path / "run")
    assert len(spied) == 3


def test_the_engine_that_runs_is_the_one_written_down(
    alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    native = operators.backend(torch.device("cpu")) == "native"
    assert alone["settings"]["engine"] == ("native" if native else "reference")
    assert {cell["attack"]["engine"] for cell in of(alone)} == {alone["settings"]["engine"]}
    assert tiny(engine="reference").resolved()["engine"] == "reference"
    monkeypatch.setattr(operators, "backend", lambda device: "reference")
    assert tiny(engine="native").resolved()["engine"] == "reference"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_not_pretended() -> None:
    with pytest.raises(
        InputError, match="device=cuda: no CUDA device is visible to PyTorch; give device=cpu"
    ):
        tiny(device="cuda").resolved()
    assert tiny(device="auto").resolved()["device"] == "cpu"


def test_training_sees_public_clips_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[Tensor, Tensor]] = []
    original = bench.train

    def train(model: nn.Module, clips: Tensor, labels: Tensor, *rest: Any) -> None:
        trained.append((clips, labels))
        original(model, clips, labels, *rest)

    monkeypatch.setattr(bench, "train", train)
    evaluate(tiny(clips=1, defenses=("none",), training_state="early"), tmp_path / "run")
    data = load_clips("synthetic", **{key: TINY[key] for key in ("frames", "size")}, clips=1)
    assert torch.equal(trained[0][0], data.public_clips)
    assert torch.equal(trained[0][1], data.public_labels)
