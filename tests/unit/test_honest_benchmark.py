"""Count of accusations of honest defenses: what is stored and said, and that a false claim counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vleak.defenses import Prune
from vleak.federated import Claim, KeepsEntries

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def honest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import honest

    return honest


def run(honest: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, str]:
    page = folder / "honest.md"
    given = ["honest", "--out", str(folder), "--page", str(page), "--part", "conformance", *more]
    monkeypatch.setattr(sys, "argv", given)
    code = honest.main()
    return code, page.read_text() if page.exists() else ""


def test_honest_defenses_are_counted_and_not_run_again(
    honest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, page = run(honest, tmp_path, monkeypatch, "--seeds", "2", "--defense", "prune")
    assert code == 0
    assert "2 runs, 16 checks" in page
    assert "1.6e-05 for any of them. Accused: 0." in page
    assert "| `prune` | 2 | 16 | 0 | 0 |" in page
    lines = (tmp_path / "conformance.jsonl").read_text().splitlines()
    texts = [json.loads(line)["defense"] for line in lines]
    assert len(texts) == 2
    assert "fraction=0.7" in texts[0]
    assert "fraction=0.9" in texts[1]
    monkeypatch.setattr(honest, "conform", None)
    assert run(honest, tmp_path, monkeypatch, "--seeds", "2", "--defense", "prune")[0] == 0


def test_a_claim_that_does_not_hold_is_an_accusation(
    honest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(self: Prune) -> tuple[Claim, ...]:
        return (KeepsEntries(fraction=0.001),)

    monkeypatch.setattr(Prune, "claims", too_few)
    code, page = run(honest, tmp_path, monkeypatch, "--seeds", "1", "--defense", "prune")
    assert code == 1
    assert "Accused: 1. prune 0 (prune:fraction=0.7" in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--seeds", "0"), "--seeds is 0, expected a whole number from 1"),
        (("--defense", "prun"), "unknown defense 'prun'; did you mean prune"),
    ],
)
def test_bad_input_is_one_line(
    honest: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    more: tuple[str, str],
    words: str,
) -> None:
    assert run(honest, tmp_path, monkeypatch, *more)[0] == 2
    assert words in capsys.readouterr().err


def test_audits_are_of_defenses_that_claim_an_epsilon(honest: Any) -> None:
    keys = [key for key, _ in honest.works("audits", ["prune", "dp_client"], 2)]
    assert keys == ["dp_client 0", "dp_client 1"]
