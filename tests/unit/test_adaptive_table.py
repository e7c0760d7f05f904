"""Table of adaptive and non-adaptive attackers, from planted rows; the defense that it brings along."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from records import make_cell, make_run

from vleak.errors import InputError
from vleak.results import Cell, summarise
from vleak.seeds import generator

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TODAY = datetime.date(2026, 1, 2)


@pytest.fixture
def adaptive(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import adaptive

    return adaptive


def behind(name: str, lead: float) -> list[Cell]:
    """Eight cells of a defense, behind which the adaptive attacker leads by about so many dB."""
    return [
        make_cell(
            index, 3.0, True, id=f"{name}{index}", defense={"name": name, "label": name},
            non_adaptive={"psnr_gain_db": 3.0 - lead - index % 2 / 10, "identified": True},
        )
        for index in range(8)
    ]  # fmt: skip


def finished(adaptive: Any, clips: str, leads: dict[str, float]) -> Any:
    cells = [cell for name, lead in leads.items() for cell in behind(name, lead)]
    run = SimpleNamespace(rows=summarise(cells), record=make_run(*cells))
    return adaptive.Finished(clips, run)


def test_only_a_lead_beyond_doubt_on_both_kinds_of_clips_counts(adaptive: Any) -> None:
    runs = [
        finished(adaptive, "embedded", {"prune": 2.0, "masks": 2.0, "dp": -0.05}),
        finished(adaptive, "real", {"prune": 1.0, "masks": -0.05, "dp": 2.0}),
    ]
    text = adaptive.page(f"head\n{adaptive.BEGIN}\nold\n{adaptive.END}\ntail\n", runs, TODAY)
    assert text.startswith("head\n")
    assert text.endswith("\ntail\n")
    assert "old" not in text
    assert "Behind 1 of 3 strengths" in text
    assert "in recognised clips: prune. Not so: masks, dp." in text
    assert "| real | prune | +3.0 [+3.0, +3.0] | 8/8 | 8/8 | +1.9 [+1.9, +2.0] | 8/8 | 0/8 | +1.1" in text
    assert text.count("\n| ") == 7
    with pytest.raises(InputError, match="expected the lines"):
        adaptive.page("no marks", runs, TODAY)


def test_the_zeroed_layer_states_nothing_and_zeroes_the_last_tensors(adaptive: Any) -> None:
    gradient = {name: torch.ones(3) for name in ("a.weight", "b.weight", "b.bias")}
    sent = adaptive.ZeroedLayer().transmit(gradient, generator("zeroed")).tensors
    assert [float(tensor.sum()) for tensor in sent.values()] == [3.0, 0.0, 0.0]
    assert adaptive.ZeroedLayer().channel(None) is None
