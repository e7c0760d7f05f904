"""Clients as they are: batches, local training, modes and frozen parameters, from settings to rows."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observers import Onlooker

import vleak
from vleak.api import Run
from vleak.errors import CapabilityError, InputError
from vleak.federated import LocalTraining
from vleak.report.words import client_text
from vleak.results import read_run

SMALL: dict[str, Any] = {
    "clips": 4, "frames": 4, "size": 8, "iterations": 40, "enhance": "none", "defenses": "none",
    "audit_draws": 0, "non_adaptive": 0,
    "workers": 1, "model": "c3d_tiny:width=4,depth=1", "attacks": "matching",
}  # fmt: skip


def run(**settings: Any) -> Run:
    return vleak.evaluate(**{**SMALL, **settings})


@pytest.fixture(scope="module", params=["matching", pytest.param("strongest", marks=pytest.mark.slow)])
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("swept")
    clients = {"batch": (1, 2), "local_steps": (0, 3), "local_rate": 0.1}
    return folder, run(**clients, attacks=request.param, out=folder)


def attacked(run: Run) -> list[Any]:
    return [cell for cell in run.cells if not cell.attack.baseline]


def test_every_client_has_its_row_and_every_clip_its_cell(swept: tuple[Path, Run]) -> None:
    cells = attacked(swept[1])
    assert all(cell.ok for cell in cells), [cell.status for cell in cells]
    clients = {(cell.client.batch_size, cell.client.local and cell.client.local.steps) for cell in cells}
    assert clients == {(1, None), (1, 3), (2, None), (2, 3)}
    assert len(cells) == 4 * 4
    assert {cell.batch for cell in cells if cell.client.batch_size == 2} == {(0, 1), (2, 3)}
    assert all(cell.clip_index in cell.batch for cell in cells)
    rows = [row for row in swept[1].rows if not row.baseline]
    assert [row.client.batch_size for row in rows] == [1, 1, 2, 2]
    assert [row.batch_identified is None for row in rows] == [True, True, False, False]
    assert [row.chance for row in rows] == [1 / 4, 1 / 4, 2 / 4, 2 / 4]
    assert read_run(swept[0]) == swept[1].record


def test_the_attack_gets_something_of_every_client(swept: tuple[Path, Run]) -> None:
    for row in swept[1].rows:
        if not row.baseline:
            assert row.psnr_gain_db.mean is not None
            assert row.psnr_gain_db.mean > 1.0, (row.client, row.psnr_gain_db)


def test_the_default_client_has_the_numbers_that_it_has_alone(swept: tuple[Path, Run]) -> None:
    alone = {cell.id: cell.scores for cell in run(attacks=swept[1].settings.attacks).cells}
    same = {cell.id: cell.scores for cell in swept[1].cells if cell.id in alone}
    assert same == alone


def test_a_batch_runs_once_and_a_lost_cell_runs_its_batch_again(
    swept: tuple[Path, Run], tmp_path: Path
) -> None:
    first = run(batch=2, iterations=5, out=tmp_path)
    journal = tmp_path / "cells.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    again = run(batch=2, iterations=5, out=tmp_path)
    assert [cell.scores for cell in again.cells] == [cell.scores for cell in first.cells]
    pairs = {cell.batch: set() for cell in attacked(first)}
    for cell in attacked(first):
        pairs[cell.batch].add((cell.attack.iterations, cell.seed, cell.update.bytes))
    assert all(len(facts) == 1 for facts in pairs.values())


def test_only_trainable_parameters_are_sent() -> None:
    whole, head = run(iterations=1), run(iterations=1, trainable="head.*")
    (model,) = head.record.models
    assert whole.record.models[0].sent_parameters is None
    assert model.sent_parameters is not None
    assert 0 < model.sent_parameters < model.parameters
    assert attacked(head)[0].update.bytes == 4 * model.sent_parameters
    with pytest.raises(InputError, match=r"trainable=tail\.\*: no trainable parameter of the model fits"):
        run(trainable="tail.*")


def test_epochs_count_in_passes_over_the_clips() -> None:
    from vleak.evaluation import Settings

    settings = Settings(batch=(1, 4), local_epochs=(2,), local_batch=2, local_rate=0.01)
    assert [client.local for client in settings.clients()] == [
        LocalTraining(steps=steps, batch_size=2, learning_rate=0.01) for steps in (2, 4)
    ]


def test_privacy_over_local_steps_is_in_the_record() -> None:
    noisy: dict[str, Any] = {
        "clips": 2,
        "defenses": "dp:noise_multiplier=2",
        "iterations": 1,
        "engine": "reference",
    }
    once = attacked(run(**noisy))[-1]
    many = attacked(run(**noisy, local_steps=4, local_rate=0.01))[-1]
    assert many.defense.epsilon > 1.9 * once.defense.epsilon
    assert many.certificate.bound > once.certificate.bound
    batch = attacked(run(**noisy, batch=2))[-1]
    assert (batch.defense.epsilon, batch.certificate) == (once.defense.epsilon, None)


def test_features_come_back_from_batches_and_deltas() -> None:
    result = run(
        pipeline="feature", extractor="frame_cnn", head="mlp", batch=(1, 2),
        local_steps=(0, 2), local_rate=0.1, size=16, clips=2, iterations=5,
    )  # fmt: skip
    assert all(cell.ok for cell in result.cells), [cell.status for cell in result.cells if not cell.ok]
    assert all(cell.scores.segments is not None for cell in attacked(result))


def test_segments_of_a_batch_come_back_whatever_bag_they_are_from(tmp_path: Path) -> None:
    numbers = torch.Generator().manual_seed(3)
    for name in ("Normal_a", "Fight_b", "Normal_c", "Fight_d"):
        rows = (torch.randn(6, 40, generator=numbers) - 0.4).relu()
        np.save(tmp_path / f"{name}.npy", (rows / rows.norm(dim=1, keepdim=True)).numpy())
    done = vleak.evaluate(
        pipeline="feature", data=tmp_path, segments=6, head="sultani", clips=2, batch=2, defenses="none",
        attacks=("low_rank", "closed_form"), enhance="none", workers=1,
    )  # fmt: skip
    cells = attacked(done)
    found = {cell.attack.name: 0 for cell in cells}
    for cell in cells:
        assert cell.scores.segments is not None, cell.status
        found[cell.attack.name] += cell.scores.segments.recovered
    assert found == {"low_rank": 12, "closed_form": 0}
    assert any("weighted by their gradients" in flag for cell in cells for flag in cell.flags)


def test_rounds_are_used_together_and_compose() -> None:
    noisy: dict[str, Any] = {
        "defenses": "dp:noise_multiplier=0.02",
        "rounds": (1, 6),
        "local_rate": 0.01,
        "iterations": 80,
    }
    result = run(**noisy)
    once, often = [row for row in result.rows if not row.baseline and not row.undefended]
    assert (once.client.rounds, often.client.rounds) == (1, 6)
    assert often.psnr_gain_db.mean > once.psnr_gain_db.mean + 1.0
    assert often.epsilon > 2 * once.epsilon
    assert often.linkage.n == 4  # by the first round, whose weights the candidates' updates are of


def test_rounds_of_new_clips_and_rounds_without_the_client() -> None:
    several: dict[str, Any] = {"rounds": 3, "local_rate": 0.01, "iterations": 3, "engine": "reference"}
    new, rare = run(**several, round_clips="new"), run(**several, participation=0.1)
    for result in (new, rare):
        assert all(cell.ok for cell in result.cells), [cell.status for cell in result.cells]
        assert all(cell.scores.linked is None for cell in attacked(result))
    assert "rounds=3,clips=new,rate=0.01" in attacked(new)[0].id
    assert "rounds=3,participation=0.1" in attacked(rare)[0].id


def test_batch_norm_under_dp_is_refused_before_any_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vleak.federated.Client.update", None)
    norm = torch.nn.Sequential(
        torch.nn.Conv3d(3, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.AdaptiveAvgPool3d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 6),
    )  # fmt: skip
    with pytest.raises(CapabilityError, match="BatchNorm3d, which mixes clips"):
        run(model=vleak.named("norm", norm), defenses=["prune", "dp"], out=tmp_path / "run")
    assert not (tmp_path / "run" / "cells.jsonl").exists()


class FunctionalDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3 * 4 * 8 * 8, 6)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(torch.nn.functional.dropout(clips.flatten(1), 0.5, self.training))


class RecurrentDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3 * 8 * 8, 6, 2, dropout=0.5, batch_first=True)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.lstm(clips.transpose(1, 2).flatten(2))[0][:, -1]


@pytest.mark.parametrize("model", [FunctionalDropout, RecurrentDropout])
def test_dropout_that_has_no_masks_is_refused_before_the_first_cell(
    model: type[torch.nn.Module], tmp_path: Path
) -> None:
    given = vleak.named("dropping", lambda **facts: model())
    with pytest.raises(CapabilityError, match=r"draws random numbers in mode 'train'.* mode=eval"):
        run(model=given, mode="train", out=tmp_path / "run")
    assert not (tmp_path / "run" / "cells.jsonl").exists()


class OnlookerOfDeltas(Onlooker):
    local_steps = True


def test_updates_that_a_cell_computes_for_all_are_told() -> None:
    class Slow(torch.nn.Sequential):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return super().forward(clips)

    told: list[tuple[str, int, int]] = []
    run(
        model=vleak.named("slow", lambda **facts: Slow(torch.nn.Flatten(), torch.nn.Linear(768, 6))),
        attacks=OnlookerOfDeltas(), local_steps=3, local_rate=0.1,
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    within = [what for what in told if what[2]]
    computing = [what for what in within if re.fullmatch(r"computing updates, \d+ of 28", what[0])]
    assert len(computing) > 2  # of a second, some times a second
    assert {what[0] for what in within} - {what[0] for what in computing} == {"attacking"}
    assert [done for _, done, _ in within] == sorted(done for _, done, _ in within)
    assert within[-1] == ("attacking", 12, 12)


def test_error_feedback_is_carried_on_over_rounds() -> None:
    changed = [
        attacked(
            run(
                defenses=f"prune:fraction=0.9,error_feedback={kept}",
                clips=1,
                rounds=3,
                local_rate=0.01,
                iterations=1,
                engine="reference",
            )
        )[-1].update
        for kept in ("false", "true")
    ]
    assert changed[0].cosine_to_undefended != changed[1].cosine_to_undefended


def test_train_mode_uses_the_batch() -> None:
    def model(frames: int, size: int, classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv3d(3, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.Sigmoid(),
            torch.nn.AdaptiveAvgPool3d(2), torch.nn.Flatten(), torch.nn.Linear(32, classes),
        )  # fmt: skip

    both = run(model=vleak.named("norm", model), batch=2, mode=("eval", "train"), iterations=5)
    assert [row.client.mode for row in both.rows if not row.baseline] == ["eval", "train"]
    cells = {
        mode: [cell for cell in attacked(both) if cell.client.mode == mode] for mode in ("eval", "train")
    }
    alone = attacked(run(model=vleak.named("norm", model), batch=2, mode="train", iterations=5))
    assert [cell.scores for cell in alone] == [cell.scores for cell in cells["train"]]
    assert {cell.client.mode for cell in cells["train"]} == {"train"}
    assert all(cell.ok for cell in cells["train"])
    assert cells["eval"][0].scores != cells["train"][0].scores
    assert {cell.id.split("@", 1)[1] for cell in cells["train"]} == {
        f"batch=2,mode=train/{cell.clip}" for cell in cells["train"]
    }


def test_masks_of_dropout_are_unknown_and_the_row_says_so() -> None:
    def model(frames: int, size: int, classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv3d(3, 4, 3, padding=1), torch.nn.Sigmoid(), torch.nn.Dropout(0.5),
            torch.nn.AdaptiveAvgPool3d(2), torch.nn.Flatten(), torch.nn.Linear(32, classes),
        )  # fmt: skip

    done = run(
        model=vleak.named("dropping", model), mode="train", defenses=("none", "dp:noise_multiplier=0.1"),
        clips=2, iterations=5,
    )  # fmt: skip
    cells = attacked(done)
    assert all(cell.ok and cell.client.masks_unknown for cell in cells), [cell.status for cell in cells]
    assert cells[0].update is not None
    assert cells[0].update.cosine_to_undefended == pytest.approx(1.0)
    assert client_text(cells[0].client) == "train mode, dropout masks unknown"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "batch=0: expected numbers from 1"),
        ({"batch": 5}, "batch=5: the data holds 4 clips"),
        ({"local_steps": -1}, "local_steps=-1: expected numbers from 0"),
        ({"local_steps": 1, "local_epochs": 1}, "local_steps and local_epochs both say"),
        ({"local_steps": 1, "local_rate": 0}, "local_rate=0: expected a number above 0"),
        ({"rounds": 2, "local_rate": -1}, "local_rate=-1: expected a number above 0"),
        ({"rounds": 2, "local_rate": float("nan")}, "local_rate=nan: expected a number above 0"),
        ({"local_momentum": 0.5}, "local_momentum=0.5: no local step uses it; give local_steps=5 too"),
        ({"rounds": 2, "local_rate": 0.1, "local_batch": 1}, "local_batch=1: no local step uses it"),
        ({"local_rate": 0.1}, "local_rate=0.1: no step uses it; give local_steps=5 or more rounds too"),
        ({"local_steps": 1}, "local_steps=1: needs a learning rate; give one, such as local_rate=0.01"),
        ({"rounds": 2}, "rounds=2: needs a learning rate; give one"),
        ({"local_steps": 1, "local_rate": 0.1, "local_optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"rounds": 0}, "rounds=0: expected numbers from 1"),
        ({"participation": 0}, r"participation=0: expected a number in \(0, 1\]"),
        ({"rounds": 5, "local_rate": 0.1, "round_clips": "new"}, "5 rounds of 1 new clips need 5, the data"),
        ({"round_clips": "old"}, "unknown round_clips 'old'; known"),
        ({"mode": "training"}, "unknown mode 'training'; did you mean train"),
        ({"mode": ("eval", "training")}, "unknown mode 'training'; did you mean train"),
        ({"mode": ()}, "unknown mode ''"),
        ({"mode": 3}, "unknown mode '3'"),
    ],
)  # fmt: skip
def test_clients_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(**settings)
