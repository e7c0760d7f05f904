"""What the data is like reaches the record: copies, drawn labels, broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from videos import noise, write_video

import vleak
from vleak.data import clip_set
from vleak.errors import InputError

RUN = {
    "defenses": ("none",), "attacks": ("matching",), "iterations": 2, "enhance": "none",
    "engine": "reference", "device": "cpu", "workers": 1,
}  # fmt: skip


class Logits(nn.Module):
    """Classifier with eleven logits, whatever the data has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 8 * 8, 11)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layer(clips.flatten(1))


def some_clips(count: int) -> Tensor:
    return torch.rand(count, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_copies_are_no_candidates_of_each_other_and_others_are_linked() -> None:
    clips = some_clips(5)
    clips[3] = clips[1]
    labels = torch.tensor([0, 1, 2, 1, 0])
    run = vleak.evaluate(data=clip_set(clips, labels, public=some_clips(7)[5:]), model=Logits(), **RUN)
    scores = {cell.clip_index: cell.scores for cell in run.cells if not cell.attack.baseline}
    assert {index: score.candidates for index, score in scores.items()} == {0: 5, 1: 4, 2: 5, 3: 4, 4: 5}
    assert all(score.linked for score in scores.values())
    assert any(note.startswith("2 of 5 attacked clips are equal to others") for note in run.record.data.notes)


@pytest.mark.parametrize("rounds", [{}, {"rounds": 3, "local_rate": 0.01}], ids=["one round", "three"])
def test_what_is_linked_is_the_message_that_was_sent(rounds: dict[str, Any]) -> None:
    defenses = ("dp:noise_multiplier=300,max_grad_norm=0.5", "prune:fraction=0.9")
    cheap = {"defenses": defenses, "iterations": 1, "audit_draws": 0, "non_adaptive": 0}
    data = clip_set(some_clips(8), torch.zeros(8, dtype=torch.int64))
    run = vleak.evaluate(labels="granted", data=data, model=Logits(), **{**RUN, **cheap, **rounds})
    undefended, noisy, pruned = [row for row in run.rows if not row.baseline]
    assert (undefended.linked, pruned.linked) == (8, 8)
    # One in eight by chance; the undefended update would be linked whatever the noise.
    assert noisy.linkage.n == 8
    assert noisy.linked <= 4
    assert noisy.link_chance == (None if rounds else pytest.approx(1 / 8, abs=0.02))
    assert noisy.bound == pytest.approx(1 / 8, abs=0.01)


def test_nobody_is_asked_to_tell_copies_apart() -> None:
    clips = some_clips(1).expand(4, -1, -1, -1, -1).clone()
    run = vleak.evaluate(data=clip_set(clips, torch.tensor([0, 1, 0, 1])), model=Logits(), **RUN)
    row = next(row for row in run.rows if not row.baseline)
    assert (row.n, row.identification.n, row.linkage.n) == (4, 0, 0)
    assert row.verdict != "no_result"


def test_drawn_labels_follow_the_logits_and_have_no_accuracy() -> None:
    run = vleak.evaluate(data=some_clips(9), model=Logits(), **RUN)
    assert run.record.data.classes == tuple(f"class{index}" for index in range(11))
    assert max(run.record.data.labels) > 5
    (model,) = run.record.models
    assert (model.train_accuracy, model.held_out_accuracy) == (None, None)
    given = vleak.evaluate(data=(some_clips(2), torch.tensor([0, 1])), model=Logits(), **RUN)
    assert given.record.models[0].held_out_accuracy is not None


def test_a_broken_video_is_skipped_and_strict_stops_at_it(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / f"{name}.mkv", noise(12))
    (tmp_path / "c.mkv").write_bytes(b"nothing")
    given = {"data": str(tmp_path), "frames": 4, "size": 8, "stride": 1, "model": Logits(), **RUN}
    run = vleak.evaluate(**given)
    assert any("1 of 3 videos cannot be read and were skipped: c.mkv" in n for n in run.record.data.notes)
    assert not hasattr(run.settings, "strict")
    with pytest.raises(InputError, match=r"^c\.mkv: is no video"):
        vleak.evaluate(**given, strict=True)


@pytest.mark.parametrize("segments", [0, -1])
def test_segments_are_checked_whatever_the_data_is(segments: int) -> None:
    with pytest.raises(InputError, match=rf"segments={segments}.*: expected at least 1"):
        vleak.evaluate(segments=segments)
