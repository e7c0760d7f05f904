"""Several captured updates in one audit: each as alone, all checked first, highest risk first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audits import LOCAL, SHAPE, clips, compared, model, sent
from torch import Tensor, nn

import vleak
from vleak.errors import InputError
from vleak.report import audit_rows, write_audits
from vleak.seeds import generator
from vleak.update_audit import Audit, AuditRecord, audit, audit_each, read_given
from vleak.update_audit.records import Measured, RiskLevel

COMPARED: dict[str, Any] = {"input_shape": SHAPE, "attacks": (), "defenses": ()}


@pytest.fixture(scope="module", name="net")
def _net() -> nn.Module:
    return model()


def test_several_updates_are_audited_each_as_alone(net: nn.Module) -> None:
    start = {name: tensor + 0.01 for name, tensor in net.state_dict().items()}
    local = replace(LOCAL, steps=2)
    steps = [sent(net, clip, local=local).tensors for clip in (0, 1)]
    after = [{name: start[name] + step[name] for name in start} for step in steps]
    how: dict[str, Any] = {**COMPARED, "local": local, "before": start, "kind": "weights"}
    told: list[tuple[str, int, int]] = []
    made = audit_each(net, after, progress=lambda *said: told.append(said), **how)
    records = [each.record.content() for each in (audit(net, after[1], **how), made[1])]
    for record in records:
        record["budget"] = None  # it has the time that was spent
    assert records[0] == records[1]
    parts = told[0][2] // 2
    assert told == [
        ("dict (1 of 2): comparing with dummies", 0, 2 * parts),
        ("dict (2 of 2): comparing with dummies", parts, 2 * parts),
    ]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (lambda net: sent(net).tensors, "dict and dict hold the same update"),
        (lambda net: {"other": torch.zeros(2)}, "which the model has not; .* dict fits the model"),
        (lambda net: vleak.Client(net).update(*_two_clips(), generator(0)), "an Update: truth: it holds 1 c"),
    ],
    ids=["equal", "another model", "a batch without its truth"],
)
def test_nothing_is_attacked_before_all_updates_are_checked(
    net: nn.Module, second: Callable[..., Any], words: str
) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match=words):
        audit_each(
            net, [sent(net).tensors, second(net)], input_shape=SHAPE, truth=clips().clips[0],
            progress=lambda what, done, parts: told.append(what),
        )  # fmt: skip
    assert told == []


def _two_clips() -> tuple[Tensor, Tensor]:
    return clips().clips[:2], clips().labels[:2]


def test_updates_that_are_none_and_settings_that_are_none_are_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match="updates: there is none"):
        audit_each(net, [], input_shape=SHAPE)
    with pytest.raises(TypeError, match="itterations"):
        audit_each(net, [sent(net).tensors], input_shape=SHAPE, itterations=3)


def test_the_highest_risk_is_the_first_row(net: nn.Module, tmp_path: Path) -> None:
    """Undetermined is above low; among equals goes what the attacker vouches for."""
    plain = compared(net, sent(net).tensors)
    planned: dict[str, tuple[RiskLevel, int]] = {
        "/x/a/low.npz": ("low", 0), "/x/a/same.npz": ("undetermined", 0), "/x/b/same.npz": ("high", 1),
        "<b>.npz": ("moderate", 0), "?#%2F.npz": ("high", 4),
    }  # fmt: skip
    made = {
        name: Audit(_judged(plain.record, *risk), plain.prior, plain.prior) for name, risk in planned.items()
    }
    rows = audit_rows(made)
    assert [row.shown for row in rows] == ["?#%2F.npz", "b/same.npz", "<b>.npz", "a/same.npz", "a/low.npz"]
    page = write_audits(made, tmp_path / "pages").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "Recognised</th>" not in page
    assert not any("data:image" in path.read_text("utf-8") for path in (tmp_path / "pages").iterdir())
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"index.html", *(r.page for r in rows)}
    assert all(f'href="{row.page}"' in page and re.fullmatch(r"[\w.-]+", row.page) for row in rows)


def test_scores_of_an_update_are_counted_over_its_clips(net: nn.Module, tmp_path: Path) -> None:
    plain = compared(net, sent(net).tensors)
    score = Measured(psnr_db=9, ssim=0, psnr_gain_db=3, correlation=0.5, recognised=True, rank=1, linked=True,
                     link_rank=1, candidates=12)  # fmt: skip
    missed = score.model_copy(update={"recognised": False, "psnr_gain_db": -1.0})
    record = plain.record.model_copy(update={"measured": (score, missed), "answered_by": "matching, start 0"})
    made = {"first": Audit(record, plain.prior, plain.prior), "second": plain}
    first, second = audit_rows(made)
    assert (first.recognised, first.gain_db, first.vouched) == ("1 of 2", 1.0, "0 of 4")
    assert (second.recognised, second.gain_db, second.vouched) == ("", None, "")
    index = write_audits(made, tmp_path, pictures=True)
    assert "1 of 2" in index.read_text(encoding="utf-8")
    assert "data:image" in (tmp_path / "01-first.html").read_text(encoding="utf-8")


def test_a_file_name_that_is_no_text_has_escapes_in_records_and_pages(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff.npz")
    np.savez(path, **{name: tensor.numpy() for name, tensor in sent(net).tensors.items()})
    assert read_given(path, net, vleak.PublicFacts()).source.endswith("a\\udcff.npz")


def _judged(record: AuditRecord, level: RiskLevel, verified: int) -> AuditRecord:
    risk = record.risk.model_copy(update={"level": level})
    confidence = record.confidence.model_copy(update={"frames_verified": verified})
    return record.model_copy(update={"risk": risk, "confidence": confidence})
