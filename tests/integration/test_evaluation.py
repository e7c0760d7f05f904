"""Evaluation: what it records, that its settings alone decide it, that no attack sees the truth."""

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
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from evaluations import cells_of, scores_of, timeless
from mutants import OtherChannel
from observers import Onlooker, Shared, Spy, holds, tensors
from torch import Tensor

from runs import DP, journal_length, tiny
from vleak.attacks import BASELINES, Hooks, Observation, Reconstruction
from vleak.attacks.strongest import Strongest
from vleak.certificates import identification_bound
from vleak.data import ClipSet, clip_set, load_clips
from vleak.defenses import Compress, DpSgd, NoDefense, Prune
from vleak.errors import CapabilityError, InputError
from vleak.evaluation import Settings, StoppedError, evaluate
from vleak.federated import Defense, Message
from vleak.metrics import Metric
from vleak.native import operators
from vleak.results import read_run, summarise
from vleak.results.flags import FAILS_UNDEFENDED, NO_BETTER
from vleak.results.records import RunRecord

DEFENSES = (DP, "prune:fraction=0.9", "compress:codec=qsgd,bits=4")
MODEL = "c3d_tiny:width=4,depth=1"
FINISHED: dict[str, Any] = {
    "model": MODEL, "defenses": DEFENSES, "attacks": ("matching", "matching_blind"), "non_adaptive": 2,
}  # fmt: skip


def small(**changes: Any) -> Settings:
    """Settings of a tiny run of a narrow model without enhancement, which few tests are about."""
    return tiny(**({"enhance": "none", "model": MODEL} | changes))


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """The clips of `tiny`."""
    return load_clips("synthetic", clips=3, frames=4, size=16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """Run with enhancement, three defenses and two attacks, one worker."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, evaluate(tiny(**FINISHED), folder, workers=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """Run that several tests compare with: DP-SGD alone, one worker, from start to end."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, evaluate(small(), folder, workers=1)


# --- what is recorded -------------------------------------------------------------------------------------


def test_results_on_the_disk_are_those_returned(finished: tuple[Path, RunRecord]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    folder, record = finished
    text = (folder / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == record.content()
    assert read_run(folder) == record
    assert {cell.status for cell in record.cells} == {"ok"}
    assert len(summarise(record)) == 2 + 2 * (1 + len(DEFENSES))


def test_a_run_in_memory_is_that_of_the_folder(alone: tuple[Path, RunRecord]) -> None:
    assert timeless(evaluate(small())) == timeless(alone[1])


def test_every_cell_that_was_asked_for_is_there_once(finished: tuple[Path, RunRecord]) -> None:
    record = finished[1]
    texts = ("none", *DEFENSES)
    attacks = [(text, attack) for text in texts for attack in ("matching", "matching_blind")]
    wanted = [("none", "grey"), ("none", "public_mean"), *attacks]
    names = record.data.names
    assert [cell.id for cell in record.cells] == [
        f"{MODEL}.untrained/{defense}/{attack}/{name}" for defense, attack in wanted for name in names
    ]
    assert record.planned_cells == len(record.cells) == 3 * len(wanted)
    assert [cell.clip_index for cell in record.cells] == [0, 1, 2] * len(wanted)
    assert [cell.clip for cell in record.cells] == list(names) * len(wanted)
    # The seed is that of the message: one a clip and defense, the same for every attack.
    messages = {(cell.defense.label, cell.clip): cell.seed for cell in record.cells}
    assert len(set(messages.values())) == len(messages)
    assert all(cell.seed == messages[cell.defense.label, cell.clip] for cell in record.cells)
    assert record.settings.defenses == texts


def test_pictures_are_the_scored_ones(finished: tuple[Path, RunRecord]) -> None:
    folder, record = finished
    truth = np.load(folder / "clips.npy", allow_pickle=False)
    assert (truth.dtype, truth.shape) == (np.uint8, (3, 3, 4, 16, 16))
    assert len({cell.media for cell in record.cells}) == len(record.cells)
    for cell in record.cells:
        assert cell.media is not None
        assert cell.media_enhanced is not None
        picture = np.load(folder / cell.media, allow_pickle=False)
        assert (picture.dtype, picture.shape) == (np.uint8, truth.shape[1:])
        assert np.load(folder / cell.media_enhanced, allow_pickle=False).shape == (3, 4, 32, 32)
        error = (picture / 255.0 - truth[cell.clip_index] / 255.0) ** 2
        psnr = float(np.mean([-10 * math.log10(error[:, t].mean()) for t in range(4)]))
        assert psnr == pytest.approx(scores_of(cell).psnr_db, abs=0.05)  # 8 bits of what was scored
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "cells.jsonl", "clips.npy", "reconstructions", "results.json", "run.json"
    }  # fmt: skip


def test_updates_are_measured(finished: tuple[Path, RunRecord]) -> None:
    parameters = finished[1].models[0].parameters
    updates = {
        name: [cell.update for cell in cells_of(finished[1], defense=name) if cell.update is not None]
        for name in ("none", "dp", "prune")
    }
    assert {name: len(found) for name, found in updates.items()} == dict.fromkeys(updates, 3)
    for update in updates["none"]:
        assert update.cosine_to_undefended == pytest.approx(1, abs=1e-12)
        assert update.changed_fraction == 0
        assert update.bytes == 4 * parameters
    for update in updates["dp"]:
        assert update.changed_fraction > 0.99
        assert update.cosine_to_undefended < 0.5
    for update in updates["prune"]:
        assert 0.1 < update.changed_fraction <= 0.9  # what was 0 before is 0 after
        assert update.bytes < 0.2 * 4 * parameters


def test_only_dp_has_a_certificate(finished: tuple[Path, RunRecord]) -> None:
    for cell in finished[1].cells:
        proven = cell.defense.name == "dp"
        assert (cell.certificate is not None) == proven
        facts = (cell.defense.epsilon, cell.defense.delta, cell.defense.unit)
        assert all((fact is not None) == proven for fact in facts)
    normal = NormalDist()
    bounds = [cell.certificate.bound for cell in cells_of(finished[1], defense="dp") if cell.certificate]
    assert bounds == [pytest.approx(normal.cdf(normal.inv_cdf(1 / 3) + 1 / 0.1))] * 3
    clipped = evaluate(small(defenses=("dp:noise_multiplier=0",), clips=1))
    assert [(cell.certificate, cell.defense.epsilon) for cell in cells_of(clipped)] == [(None, None)] * 2


def test_every_attack_meets_the_same_message(finished: tuple[Path, RunRecord]) -> None:
    adaptive, other = (cells_of(finished[1], name) for name in ("matching", "matching_blind"))
    assert len(adaptive) == len(other) == 12
    for one, two in zip(adaptive, other, strict=True):
        assert (one.seed, one.update) == (two.seed, two.update)
        assert scores_of(one).link_rank == scores_of(two).link_rank
        assert (one.attack.defense_knowledge, two.attack.defense_knowledge) == ("channel", "none")
        assert (one.knowledge.defense, two.knowledge.defense) == (True, False)
        assert (one.attack.counterpart, two.attack.counterpart) == (None, "matching")


def test_beside_an_attack_stands_what_it_gets_without_knowing_the_defense(
    finished: tuple[Path, RunRecord],
) -> None:
    adaptive, blind = (cells_of(finished[1], name) for name in ("matching", "matching_blind"))
    beside = [cell for cell in adaptive if cell.non_adaptive is not None]
    # Spread over the data, and neither where there is no defense nor where the attack does not know it.
    assert {(cell.defense.name, cell.clip_index) for cell in beside} == {
        (name, clip) for name in ("dp", "prune", "compress") for clip in (0, 1)
    }
    assert all(cell.non_adaptive is None for cell in blind)
    alone = {(cell.defense.text, cell.clip): cell for cell in blind}
    for cell in beside:
        twin, other = alone[cell.defense.text, cell.clip], cell.non_adaptive
        assert other is not None
        scores = scores_of(twin)
        assert (other.psnr_db, other.psnr_gain_db, other.ssim) == (
            scores.psnr_db, scores.psnr_gain_db, scores.ssim,
        )  # fmt: skip
        assert (other.identified, other.label_correct) == (scores.identified, scores.label_correct)
        assert (other.status, other.iterations) == ("ok", twin.attack.iterations)
        assert scores_of(cell).psnr_db != other.psnr_db


def test_who_does_not_know_the_defense_shares_the_trials_of_no_defense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, trials_of = list[str](), Strongest._tried

    def counted(self: Strongest, *arguments: Any) -> Any:
        tried.append(repr(self))
        return trials_of(self, *arguments)

    monkeypatch.setattr(Strongest, "_tried", counted)
    record = evaluate(
        small(
            clips=2, size=8, engine="reference",
            attacks=("strongest:iterations=4,budget=5",), non_adaptive=2,
        )
    )  # fmt: skip
    assert len(tried) == 2  # behind no defense, and behind DP-SGD
    (without,) = {cell.attack.method for cell in cells_of(record, "strongest", "none")}
    others = {cell.non_adaptive.method for cell in cells_of(record, "strongest", "dp") if cell.non_adaptive}
    assert others == {without}


def test_who_does_not_know_the_defense_costs_no_cell_where_he_fails(clips: ClipSet) -> None:
    class NeedsDefense(Onlooker):
        name: ClassVar[str] = "needs_defense"

        def look(self, observation: Observation) -> Reconstruction:
            if observation.channel is None or observation.channel.exact:
                raise ValueError("nothing to know")
            return super().look(observation)

    record = evaluate(small(data=clips, clips=None, attacks=(NeedsDefense(),), non_adaptive=3))
    defended = cells_of(record, "needs_defense", "dp")
    assert all(cell.ok for cell in defended)
    reasons = {cell.non_adaptive.status for cell in defended if cell.non_adaptive}
    assert reasons == {"failed: attack 'needs_defense' raised ValueError: nothing to know"}
    assert summarise(record)[-1].non_adaptive is None


def test_clips_of_both_attackers_are_spread_over_the_data_in_whole_batches() -> None:
    record = evaluate(
        small(clips=6, batch=(2,), iterations=1, attacks=(Onlooker(),), non_adaptive=3), workers=1
    )
    beside = [cell.batch for cell in cells_of(record, "onlooker", "dp") if cell.non_adaptive is not None]
    assert beside == [(0, 1), (0, 1), (2, 3), (2, 3)]


def test_granted_labels_narrow_certificate_and_linkage(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(observation: Observation, candidates: Any) -> Tensor:
        asked.extend(len(hypotheses) for hypotheses in candidates)
        return torch.zeros(len(candidates))

    monkeypatch.setattr("vleak.pipelines.linking.link_scores", spy)
    evaluate(small(iterations=1, defenses=("none",)))
    assert set(asked) == {6}  # every candidate under each of the six labels
    asked.clear()
    record = evaluate(small(clips=8, iterations=1, labels="granted"))
    assert set(asked) == {1}
    labels = record.data.labels
    for cell in cells_of(record, defense="dp"):
        alike = labels.count(labels[cell.clip_index])
        assert cell.certificate is not None
        assert cell.certificate.bound == pytest.approx(identification_bound(alike, 0.1))
    assert {cell.knowledge.labels for cell in record.cells} == {"granted"}
    assert all(scores_of(cell).label_correct for name in BASELINES for cell in cells_of(record, name))


def test_numbers_beyond_json_are_none(tmp_path: Path) -> None:
    class Endless(Onlooker):
        name: ClassVar[str] = "endless"
        objective: ClassVar[float] = math.inf

        def look(self, observation: Observation) -> Reconstruction:
            return dataclasses.replace(super().look(observation), objective=self.objective)

    for objective in (math.inf, -math.inf, math.nan):
        Endless.objective = objective
        settings = small(defenses=("dp:noise_multiplier=1e-200",), clips=1, attacks=(Endless(),))
        record = evaluate(settings, tmp_path / str(objective))
        cells = cells_of(record, "endless")
        assert [cell.attack.objective for cell in cells] == [None, None]
        assert [cell.defense.epsilon for cell in cells] == [None, None]
        assert read_run(tmp_path / str(objective)) == record


# --- the baselines ----------------------------------------------------------------------------------------


def test_none_always_runs_and_on_the_same_weights(
    finished: tuple[Path, RunRecord], alone: tuple[Path, RunRecord]
) -> None:
    assert finished[1].models == alone[1].models
    undefended, other = (timeless(cells_of(run[1], defense="none")) for run in (alone, finished))
    assert len(undefended) == 3
    for name, cell in undefended.items():
        changes = {"enhanced": other[name].enhanced, "media_enhanced": other[name].media_enhanced}
        assert cell.model_copy(update=changes) == other[name]


def test_baselines_are_in_every_run(alone: tuple[Path, RunRecord], clips: ClipSet) -> None:
    without = dataclasses.replace(
        clips,
        public_clips=clips.public_clips[:0],
        public_labels=clips.public_labels[:0],
        public_groups=None,
    )
    for record, expected in (
        (alone[1], {"grey", "public_mean"}),
        (evaluate(small(defenses=("none",), data=without, clips=None)), {"grey"}),
    ):
        names = {cell.attack.name for cell in record.cells if cell.attack.baseline}
        assert names == expected
        for name in names:
            cells = cells_of(record, name)
            assert len(cells) == record.data.clips
            assert {cell.defense.name for cell in cells} == {"none"}
            assert {cell.knowledge.defense for cell in cells} == {False}
            assert all((scores_of(cell).psnr_gain_db or 0) <= 0 for cell in cells)
        assert all(set(scores_of(cell).baselines) == expected for cell in record.cells)


def test_who_knows_nothing_identifies_at_most_one_clip() -> None:
    record = evaluate(small(clips=8, defenses=("none",), iterations=1))
    for name in ("grey", "public_mean"):
        scores = [scores_of(cell) for cell in cells_of(record, name)]
        assert sum(score.identified for score in scores) <= 1
        ranks = [score.rank for score in scores if score.rank is not None]
        assert sorted(ranks) == sorted(set(ranks))
        assert len(ranks) == 8
        assert {score.linked for score in scores} == {None}


# --- nothing but the settings decides ---------------------------------------------------------------------


def test_same_scores_whatever_the_workers(alone: tuple[Path, RunRecord], tmp_path: Path) -> None:
    folder, expected = alone
    record = evaluate(small(), tmp_path / "run", workers=3)
    assert timeless(record) == timeless(expected)
    for part in ("settings", "data", "models", "planned_cells"):
        assert getattr(record, part) == getattr(expected, part)
    for cell in expected.cells:
        assert cell.media is not None
        assert (tmp_path / "run" / cell.media).read_bytes() == (folder / cell.media).read_bytes()


def test_groups_of_cells_give_the_numbers_of_single_cells(alone: tuple[Path, RunRecord]) -> None:
    together = timeless(evaluate(small(), workers=5, batched=True))
    assert list(together) == [cell.id for cell in alone[1].cells]
    for name, cell in timeless(alone[1]).items():
        batched, single = scores_of(together[name]), scores_of(cell)
        if cell.attack.baseline:
            assert together[name] == cell
            continue
        # A batch sums in another order.
        assert batched.psnr_db == pytest.approx(single.psnr_db, abs=1e-5)
        assert together[name].attack.objective == pytest.approx(cell.attack.objective, rel=1e-5)
        assert (batched.rank, batched.link_rank, together[name].flags) == (
            single.rank, single.link_rank, cell.flags
        )  # fmt: skip
        assert (together[name].update, together[name].seed) == (cell.update, cell.seed)


def test_another_seed_is_another_run(alone: tuple[Path, RunRecord]) -> None:
    other = timeless(evaluate(small(seed=1)))
    assert [name for name, cell in timeless(alone[1]).items() if other[name].scores == cell.scores] == []


def test_a_cell_does_not_depend_on_the_other_clips(alone: tuple[Path, RunRecord]) -> None:
    many = timeless(alone[1])
    for name, cell in timeless(evaluate(small(clips=2))).items():
        few, all_three = scores_of(cell), scores_of(many[name])
        for key in ("psnr_db", "ssim", "motion_psnr_db", "baselines", "label_correct"):
            assert getattr(few, key) == getattr(all_three, key)
        assert cell.update == many[name].update


def test_stopped_and_resumed_is_the_same(alone: tuple[Path, RunRecord], tmp_path: Path) -> None:
    stop, seen = threading.Event(), list[int]()

    def halt(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 8:
            stop.set()

    with pytest.raises(StoppedError, match=r"^stopped with [89] of 12 cells finished$"):
        evaluate(small(), tmp_path, progress=halt, stop=stop, workers=2)
    part = timeless(read_run(tmp_path))
    assert 8 <= len(part) < 12
    assert part == {name: cell for name, cell in timeless(alone[1]).items() if name in part}
    assert (tmp_path / "results.json").exists()

    resumed = list[int]()
    record = evaluate(small(), tmp_path, progress=lambda what, done, total: resumed.append(done))
    assert timeless(record) == timeless(alone[1])
    assert [done for done in resumed if done] == list(range(len(part), 13))  # nothing ran twice


def test_a_finished_run_is_not_run_again(finished: tuple[Path, RunRecord]) -> None:
    folder, record = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "reconstructions").iterdir()}
    stop = threading.Event()
    assert evaluate(tiny(**FINISHED), folder, workers=1, stop=stop) == record  # times of the attacks included
    assert {path: path.stat().st_mtime_ns for path in (folder / "reconstructions").iterdir()} == before
    assert not stop.is_set()  # the event is the caller's


@pytest.mark.slow
def test_killed_and_resumed_is_the_same(tmp_path: Path) -> None:
    changes = {"iterations": 80, "enhance": "none"}
    script = (
        "import pathlib, runs, vleak.evaluation as e\n"
        f"e.evaluate(runs.tiny(**{changes!r}), pathlib.Path({str(tmp_path / 'killed')!r}), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1] / "support")
    try:
        deadline = time.monotonic() + 180
        while journal_length(tmp_path / "killed") < 7 and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert 7 <= journal_length(tmp_path / "killed") < 12
    assert not (tmp_path / "killed" / "results.json").exists()
    with open(tmp_path / "killed" / "cells.jsonl", "ab") as journal:
        journal.write(b'{"id": "c3d_tiny.untrained/dp:')  # as a kill within a write leaves it
    assert 7 <= len(read_run(tmp_path / "killed").cells) < 12
    resumed = evaluate(tiny(**changes), tmp_path / "killed", workers=1)
    assert timeless(resumed) == timeless(evaluate(tiny(**changes), tmp_path / "other", workers=2))


def test_another_run_in_the_folder_is_refused_before_anything_slow(
    finished: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object, **named: object) -> ClipSet:
        raise AssertionError("clips were loaded")

    monkeypatch.setattr("vleak.evaluation.setup.load_data", slow)
    with pytest.raises(InputError, match=r"holds another run: settings defenses is \['none', 'dp:noise_mult"):
        evaluate(tiny(**(FINISHED | {"defenses": (DP,)})), finished[0])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        evaluate(tiny(), tmp_path / "file")


def test_other_clips_under_the_same_name_are_another_run(clips: ClipSet, tmp_path: Path) -> None:
    settings = {"defenses": ("none",), "clips": None, "iterations": 1}
    evaluate(small(data=clips, **settings), tmp_path)
    changed = dataclasses.replace(clips, clips=clips.clips.flip(4))
    with pytest.raises(InputError, match="holds another run: data sha256 is"):
        evaluate(small(data=changed, **settings), tmp_path)


# --- cells that fail --------------------------------------------------------------------------------------


class Refusing(Defense):
    """Finds out in its first step that it cannot work."""

    def aggregate(self, *_: Any) -> dict[str, Tensor]:
        raise CapabilityError("refusing: this model is none for it")


def test_a_failed_defense_is_recorded_beside_the_others(tmp_path: Path) -> None:
    record = evaluate(small(defenses=(Refusing(), "prune:fraction=0.9")), tmp_path / "run")
    for cell in record.cells:
        if cell.defense.name == "Refusing":
            assert cell.status == "failed: refusing: this model is none for it"
            assert not cell.ok
            assert (cell.media, cell.scores, cell.enhanced, cell.update) == (None,) * 4
        else:
            assert cell.status == "ok"
    rows = {row.defense: row for row in summarise(record) if not row.baseline}
    assert [(row.n, row.failed) for row in rows.values()] == [(3, 0), (0, 3), (3, 0)]
    assert journal_length(tmp_path / "run") == record.planned_cells == 15


class Fragile(Onlooker):
    """Fails on the second clip, with an error that nobody expected, until it is mended."""

    name: ClassVar[str] = "fragile"
    asked: ClassVar[int] = 0
    mended: ClassVar[bool] = False

    def look(self, observation: Observation) -> Reconstruction:
        Fragile.asked += 1
        if self.asked == 2 and not self.mended:
            raise ZeroDivisionError("first line\nsecond line")
        return super().look(observation)


def test_an_unexpected_error_costs_one_cell_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fragile, "asked", 0)
    settings = small(defenses=("none",), attacks=(Fragile(),))
    first = evaluate(settings, tmp_path, workers=1)
    name = "fragile"
    failed = f"failed: attack {name!r} raised ZeroDivisionError: first line"
    assert [cell.status for cell in cells_of(first, name)] == ["ok", failed, "ok"]
    monkeypatch.setattr(Fragile, "mended", True)
    second = evaluate(settings, tmp_path, workers=1)
    assert [cell.status for cell in second.cells] == ["ok"] * 9
    assert Fragile.asked == 4
    assert len(read_run(tmp_path).cells) == 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Defense):
    """Raises when it sends."""

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        raise ZeroDivisionError("no message")


class OtherShape(Onlooker):
    """Returns clips of another shape."""

    name: ClassVar[str] = "other_shape"

    def look(self, observation: Observation) -> Reconstruction:
        answer = super().look(observation)
        return dataclasses.replace(answer, clips=answer.clips[..., :8])


class NotANumber(Metric):
    """Returns NaN."""

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        return math.nan


def test_a_plug_in_that_breaks_its_contract_costs_its_own_cells(clips: ClipSet) -> None:
    common = {"data": clips, "clips": None, "iterations": 1}
    spoiled = evaluate(small(defenses=(Broken(),), attacks=("matching", OtherShape()), **common), workers=1)
    for cell in spoiled.cells:
        if cell.attack.baseline:
            assert cell.ok
        elif cell.defense.name == "Broken":
            assert "Broken" in (cell.failure or "")
            assert "ZeroDivisionError: no message" in (cell.failure or "")
        elif cell.attack.name == "matching":
            assert cell.ok
        else:
            assert "returned shape (1, 3, 4, 16, 8), expected (1, 3, 4, 16, 16)" in (cell.failure or "")
    split = evaluate(small(defenses=(OtherChannel(),), attacks=("matching",), **common))
    assert {cell.defense.name for cell in split.cells if cell.ok} == {"none"}
    assert all(
        "channel states noise of 0.5 on the sum, the claims 1; correct one of them" in (cell.failure or "")
        for cell in split.cells
        if not cell.ok
    )
    unscored = evaluate(small(defenses=("none",), metrics=(NotANumber(),), **common))
    assert all("metric 'NotANumber'" in (cell.failure or "") for cell in unscored.cells)


# --- names and objects ------------------------------------------------------------------------------------


class Brightest(Metric):
    """Brightest pixel of the answer."""

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        return float(reconstruction.max())


def test_objects_give_the_numbers_of_their_names(alone: tuple[Path, RunRecord], clips: ClipSet) -> None:
    from vleak.attacks import Matching
    from vleak.models import build_model

    by_name = timeless(alone[1])
    model = build_model(MODEL, frames=4, size=16, classes=6, seed=0)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = evaluate(
        small(data=clips, clips=None, model=model, defenses=(NoDefense(),), attacks=(Matching(iterations=3),),
              metrics=("ssim", Brightest()))
    )  # fmt: skip
    assert record.models[0].weights_sha256 == alone[1].models[0].weights_sha256
    assert record.settings.model == "C3DTiny"
    assert record.settings.attacks == ("matching:iterations=3",)
    for cell in cells_of(record, "matching"):
        assert cell.attack.settings == {"iterations": 3}
        scores, metrics = scores_of(cell), scores_of(cell).metrics
        named = by_name[f"{MODEL}.untrained/none/matching/{cell.clip}"]
        # The seeds of an attack are those of its model's name.
        assert cell.update == named.update
        assert scores.baselines == scores_of(named).baselines
        assert metrics["ssim"] == scores.ssim
        assert set(metrics) == {"ssim", "Brightest"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_settings_of_an_attack_come_with_its_name() -> None:
    settings = small(attacks=("matching:iterations=2,restarts=2", "matching"), defenses=("none",), clips=1)
    record = evaluate(settings)
    found = {cell.attack.text: cell.attack for cell in cells_of(record)}
    assert set(found) == {"matching", "matching:iterations=2,restarts=2"}
    assert [(a.restarts, a.iterations) for a in found.values()] == [(2, 4), (1, 3)]
    assert [cell.id.split("/")[2] for cell in cells_of(record)] == list(found)


class Thief(Onlooker):
    """Has the name of another attack."""

    name: ClassVar[str] = "matching"


def test_what_has_no_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: .* is no name that a record could tell it by; give one"):
        small(model=lambda: torch.nn.Identity())
    with pytest.raises(InputError, match="Thief has the name 'matching' of another attack"):
        small(attacks=(Thief(),))


# --- the truth is not in it -------------------------------------------------------------------------------


def test_the_truth_is_not_in_the_observation(clips: ClipSet) -> None:
    spy = Spy()
    evaluate(small(data=clips, clips=None, defenses=DEFENSES, attacks=(spy,), non_adaptive=3), workers=1)
    assert len(spy.seen) == 12 + 9
    for observation in spy.seen:
        reached = list(tensors(observation))
        assert len(reached) > 2 * len(observation.update.tensors)  # weights and update at least
        assert any(holds(tensor, clips.public_clips[0]) for tensor in reached)  # the search does find clips
        for clip in clips.clips:
            assert not any(holds(tensor, clip) for tensor in reached)


def test_an_attacker_has_a_model_of_his_own_and_the_same_public_clips() -> None:
    spies = {count: Spy() for count in (2, 3)}
    for count, spy in spies.items():
        evaluate(small(clips=count, attacks=(spy,)), workers=1)
    seen = [observation for spy in spies.values() for observation in spy.seen]
    assert len(seen) == 10
    assert len({id(observation.model) for observation in seen}) == len(seen)
    first = seen[0]
    assert first.knowledge.public_clips is not None
    for observation in seen:
        assert observation.knowledge.public_clips is not None
        assert torch.equal(observation.knowledge.public_clips, first.knowledge.public_clips)
        ours, theirs = observation.model.state_dict(), first.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not any(parameter.grad is not None for parameter in observation.model.parameters())


def test_labels_are_granted_when_asked_for() -> None:
    spy = Spy()
    record = evaluate(small(labels="granted", defenses=("none",), attacks=(spy,)), workers=1)
    labels = [observation.labels for observation in spy.seen]
    assert [label.tolist() for label in labels] == [[label] for label in record.data.labels]
    # A view would reach the labels of other clips.
    assert all(label.untyped_storage().nbytes() == 8 for label in labels)


class Elsewhere:
    """Part of a defense that trains on another clip, whatever clip there is."""

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return torch.linspace(0.1, 0.9, clips.numel()).view_as(clips), torch.zeros_like(labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElsewhereDp(Elsewhere, DpSgd):
    """DP-SGD of another clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElsewherePrune(Elsewhere, Prune):
    """Pruning of another clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElsewhereCompress(Elsewhere, Compress):
    """Compression of another clip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElsewhereNone(Elsewhere, NoDefense):
    """Nothing else than another clip."""


def test_a_planted_truth_changes_no_answer(tmp_path: Path) -> None:
    defenses = (
        ElsewhereNone(), ElsewhereDp(noise_multiplier=0.1), ElsewherePrune(fraction=0.9),
        ElsewhereCompress(codec="qsgd", bits=4),
    )  # fmt: skip
    here, there = (
        load_clips("synthetic", seed=seed, fine=True, clips=2, frames=4, size=16) for seed in (0, 1)
    )
    planted = dataclasses.replace(here, clips=there.clips, fine=there.fine, labels=here.labels.flip(0))
    runs = [
        evaluate(
            tiny(data=data, clips=None, model=MODEL, restarts=2, training_state="early", defenses=defenses),
            tmp_path / name, workers=1,
        )
        for name, data in (("here", here), ("planted", planted))
    ]  # fmt: skip
    ours, theirs = (timeless(run) for run in runs)
    assert runs[0].models[0].weights_sha256 == runs[1].models[0].weights_sha256
    compared = [name for name in ours if "Elsewhere" in name]
    assert len(compared) == 8
    for name in compared:
        cell, other = ours[name], theirs[name]
        assert cell.media is not None
        assert (tmp_path / "here" / cell.media).read_bytes() == (
            tmp_path / "planted" / cell.media
        ).read_bytes()
        assert cell.attack == other.attack
        assert scores_of(cell).psnr_db != scores_of(other).psnr_db  # the scorer does see it


def test_flags_are_in_the_results() -> None:
    spy = Spy()
    record = evaluate(small(attacks=(spy,)))
    name = "spy"
    for cell in cells_of(record, name, defense="none"):
        assert cell.flags == (() if scores_of(cell).identified else (NO_BETTER,))
    assert FAILS_UNDEFENDED in {flag for cell in cells_of(record, name, "dp") for flag in cell.flags}


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
@pytest.mark.parametrize("model", [MODEL, pytest.param("odd_models:plain", marks=pytest.mark.slow)])
def test_the_process_is_left_as_it_was(
    model: str, alone: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1] / "support")
    evaluate(small(model=model, clips=1), tmp_path / "warm")  # imports have their own effects, once
    before = process_state()
    assert torch.get_num_threads() == 2
    torch.rand(3), random.random(), np.random.default_rng(0)
    before = process_state()
    record = evaluate(small(model=model), tmp_path / "run", workers=2)
    assert process_state() == before
    if model == MODEL:
        assert timeless(record) == timeless(alone[1])


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds NaN"):  # the import adds the working folder to sys.path, once
        evaluate(small(model="odd_models:nan_weights"), tmp_path / "run")
    before = process_state()
    with pytest.raises(InputError, match="holds NaN"):
        evaluate(small(model="odd_models:nan_weights"), tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):
        evaluate(small(data="nowhere"), tmp_path / "run")
    assert process_state() == before
    assert not (tmp_path / "run").exists()


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "featur"}, r"unknown pipeline 'featur'; did you mean feature\?"),
        ({"pipeline": "feature", "head": "mpl"}, r"unknown head 'mpl'; did you mean mlp"),
        ({"pipeline": "feature", "extractor": "c3d"}, "unknown extractor 'c3d'"),
        ({"loss": "bec"}, r"unknown loss 'bec'; did you mean bce\?"),
        ({"enhance": "classic"}, r"unknown enhancer 'classic'; did you mean classical"),
        ({"reference_frames": (0, -1)}, "reference_frames=0,-1: expected numbers from 0"),
        ({"reference_frames": ()}, "reference_frames=: expected numbers from 0"),
        ({"attacks": ("low_rank",)}, "attacks=low_rank: takes features, which the raw pipeline has none of"),
        ({"training_state": "lat"}, r"unknown training state 'lat'; did you mean late\?"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"engine": "nativ"}, r"unknown engine 'nativ'; did you mean native\?"),
        ({"labels": "given"}, "unknown labels 'given'"),
        ({"attacks": ("matchin",)}, "unknown attack 'matchin'; did you mean matching"),
        ({"attacks": ("matching:rul=lbfgs",)}, "unknown setting of attack matching 'rul'"),
        ({"defenses": ("prun",)}, r"unknown defense 'prun'; did you mean prune"),
        ({"metrics": ("snr",)}, "unknown metric 'snr'; did you mean psnr"),
        ({"restarts": 0}, "restarts=0: expected at least 1"),
        ({"iterations": -1}, "iterations=-1: expected at least 1"),
    ],
)
def test_wrong_settings_are_known_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_at_least_one(workers: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"workers={workers}: expected a whole number from 1"):
        evaluate(tiny(), tmp_path / "run", workers=workers)
    assert not (tmp_path / "run").exists()


def test_an_attack_named_twice_runs_once() -> None:
    spy = Spy()
    settings = small(attacks=(spy, spy), defenses=("none", "none"))
    assert settings.resolved().attacks == ("spy",)
    evaluate(settings)
    assert len(spy.seen) == 3


def test_the_engine_that_runs_is_the_one_recorded(
    alone: tuple[Path, RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    native = operators.backend(torch.device("cpu")) == "native"
    assert alone[1].settings.engine == ("native" if native else "reference")
    assert {cell.attack.engine for cell in cells_of(alone[1])} == {alone[1].settings.engine}
    assert tiny(engine="reference").resolved().engine == "reference"
    monkeypatch.setattr(operators, "backend", lambda device: "reference")
    assert tiny(engine="native").resolved().engine == "reference"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_not_pretended() -> None:
    with pytest.raises(InputError, match="device=cuda: no CUDA device is visible to PyTorch; use device=cpu"):
        tiny(device="cuda").resolved()
    assert tiny(device="auto").resolved().device == "cpu"


# --- what an attack is handed -----------------------------------------------------------------------------


class Vandal(Onlooker):
    """Writes into everything that it is handed."""

    name: ClassVar[str] = "vandal"

    def look(self, observation: Observation) -> Reconstruction:
        for tensor in tensors([observation.update, observation.knowledge.public_clips]):
            tensor.zero_()
        return super().look(observation)


def test_an_attack_that_writes_changes_no_other_cell_and_no_record(tmp_path: Path) -> None:
    alone = evaluate(small(attacks=("matching",)), None, workers=1)
    beside = evaluate(small(attacks=(Vandal(), "matching")), None, workers=1)
    own = {cell.id: cell for cell in timeless(alone).values()}
    assert {name: cell for name, cell in timeless(beside).items() if name in own} == own
    vandals = cells_of(beside, "vandal", "none")
    assert vandals
    assert all(cell.update is not None and cell.update.cosine_to_undefended > 0.99 for cell in vandals)


class Tap(Onlooker):
    """Keeps the observations and the hooks of all its copies."""

    name: ClassVar[str] = "tap"

    def __init__(self) -> None:
        self.seen, self.hooks = Shared(), Shared()

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        self.seen.append(observation)
        self.hooks.append(hooks)  # type: ignore[arg-type]
        return super().prepare(observation, generator, hooks)


def test_neither_storage_nor_hooks_lead_to_the_truth() -> None:
    drawn = torch.rand(7, 3, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    # Public clips that are a view of the storage in which the private ones lie.
    data = clip_set(drawn[:3], torch.arange(3), public=drawn[3:], public_labels=torch.arange(4) % 3)
    tap = Tap()
    evaluate(tiny(data=data, attacks=(tap,), defenses=("none",), enhance="none"), None, workers=1)
    assert len(tap.seen) == 3
    for observation in tap.seen:
        public = observation.knowledge.public_clips
        assert public is not None
        assert public.untyped_storage().nbytes() == public.numel() * 4
    private = list(drawn[:3])
    assert not [t for t in tensors([*tap.hooks]) if any(holds(t, clip) for clip in private)]


def test_two_attacks_of_one_text_are_refused() -> None:
    with pytest.raises(InputError, match="attacks: two are called 'tap'"):
        tiny(attacks=(Tap(), Tap()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a", "b")}, "names that are not one a clip"),
        ({"labels": torch.tensor([0, 1, 9])}, "labels outside 0 to"),
        ({"clips": torch.zeros(3, 3, 4, 16, 16, dtype=torch.uint8)}, "torch.uint8, expected"),
        ({"clips": torch.zeros(3, 4, 16, 16)}, "expected clips of shape"),
    ],
)
def test_a_data_set_whose_parts_do_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    data = clip_set(torch.zeros(3, 3, 4, 16, 16), torch.arange(3), public=torch.ones(2, 3, 4, 16, 16),
                    public_labels=torch.arange(2))  # fmt: skip
    with pytest.raises(InputError, match=message):
        evaluate(tiny(data=replace(data, **change), defenses=("none",)), None, workers=1)
