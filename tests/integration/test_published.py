"""Published defenses: their adapters, what is recomputed of them, and the command that attacks them."""

from __future__ import annotations

import ast
import datetime
import io
import json
import tokenize
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress

from vleak.conformance import conform
from vleak.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ROOT / "examples" / "published"
MOST_LINES = 40
SKIPPED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


@pytest.fixture(name="published")
def _published(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ADAPTERS)
    import published
    import published_page

    return SimpleNamespace(command=published, page=published_page, recipes=published.recipes())


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    told = set[int]()
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            told |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for t in tokens if t.type not in SKIPPED for line in range(t.start[0], t.end[0] + 1)}
    return len(lines - told)


def test_lines_of_code_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""One\n\ntwo."""\n\n# no\nx = [\n    1,\n]\n\n\ndef f():\n    """No."""\n'
    )
    assert code_lines(tmp_path / "a.py") == 4


def test_an_adapter_takes_at_most_forty_lines() -> None:
    adapters = [path for path in ADAPTERS.glob("*.py") if path.stem != "recipe"]
    assert len(adapters) == 3
    assert {path.name: code_lines(path) for path in adapters if code_lines(path) > MOST_LINES} == {}


def test_the_noise_is_that_of_the_publications_own_accounting(published: Any) -> None:
    import fedvideomae
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = [
        1.25,
        1.5,
        *(n / 2 for n in range(4, 9)),
        5,
        6,
        8,
        10,
        12,
        14,
        16,
        20,
        32,
        64,
        128,
        256,
        384,
        512,
    ]
    rdp = compute_rdp(q=0.8, noise_multiplier=fedvideomae.LOGGED, steps=8, orders=orders)
    first, _ = get_privacy_spent(orders=orders, rdp=rdp, delta=1e-5)
    assert float(first) == pytest.approx(0.0584, abs=5e-5)  # round 1 of the log of epsilon 1


def test_epsilon_by_what_is_done(published: Any) -> None:
    logged, shipped = (published.recipes[f"FedVideoMAE, as {way}"] for way in ("logged", "shipped"))
    assert logged.recomputed < logged.claimed
    assert shipped.recomputed > 5 * shipped.claimed


@pytest.mark.slow
def test_which_claims_of_the_publications_are_broken(published: Any) -> None:
    broken = {
        name: [check.name for check in conform(recipe.defense).checks if check.outcome == "broken"]
        for name, recipe in published.recipes.items()
    }
    assert broken == {
        "FedVideoMAE, as logged": ["side metrics"],
        "FedVideoMAE, as shipped": ["side metrics"],
        "FedVideoMAE, DP not set up": ["side metrics", "passes through"],
        "Multi-clip DP-SGD": [],
        "Fed_WSVAD": [],
    }


# ---------------------------------------------------------------------------------------------------------
# The command


def planted(published: Any, **changes: Any) -> Any:
    page = published.page
    leak = page.Leak((0.1, -0.2, 0.4), 1, 12, 2, 12)
    outcome = page.Outcome(
        measured="2026-01-02", software="vleak 1", data="abc", clips=12, claimed=20.0, recomputed=196.1,
        step=5.07, sent=5.07, audit=page.Audit(4.32, "gaussian", 1000, refuted=False),
        broken=("side metrics",), defended=leak,
        undefended=replace(leak, gain=(2.0, None, None), identified=9, linked=12), chance=1 / 12,
    )  # fmt: skip
    return replace(outcome, **changes)


def test_the_table_says_what_was_measured(published: Any) -> None:
    refuted = planted(published, audit=published.page.Audit(50.0, "gaussian", 1000, refuted=True), broken=())
    text = published.page.table({"one": planted(published), "two": refuted})
    first, second = [line for line in text.splitlines() if line.startswith(("| one", "| two"))]
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "one", "20", "196", "5.07", "5.07", "4.32", "1/12 (undefended 9/12)", "2/12 (undefended 12/12)",
        "8 %", "+0.1 [-0.2, +0.4] (undefended +2.0)", "side metrics",
    ]  # fmt: skip
    assert "50 (refuted)" in second
    assert second.endswith("| none |")


def test_outcomes_are_kept_and_read(published: Any, tmp_path: Path) -> None:
    kept = {"one": planted(published), "two": planted(published, audit=None, claimed=None)}
    published.page.write_outcomes(tmp_path / "kept.json", kept)
    assert published.page.read_outcomes(tmp_path / "kept.json") == kept
    (tmp_path / "kept.json").write_text('{"one": {}}')
    with pytest.raises(InputError, match="expected what this command writes"):
        published.page.read_outcomes(tmp_path / "kept.json")


def test_a_stopped_measurement_goes_on(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def measured(name: str, *_: Any) -> Any:
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return planted(published)

    monkeypatch.setattr(published.command, "measured", measured)
    given = Namespace(
        data="synthetic", out=tmp_path, seed=0, only="", again=False, outcomes=tmp_path / "kept.json"
    )
    with Progress(disable=True) as bar, pytest.raises(KeyboardInterrupt):
        published.command.measure(given, bar)
    assert len(json.loads(given.outcomes.read_text())) == 1
    with Progress(disable=True) as bar:
        results = published.command.measure(given, bar)
    names = list(published.recipes)
    assert asked == [*names[:2], *names[1:]]
    assert list(results) == names


@pytest.mark.slow
def test_a_recipe_is_measured_on_synthetic_clips(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        published.command, "SHARED", {**published.command.SHARED, "clips": 3, "iterations": 10, "budget": 20}
    )
    monkeypatch.setattr(published.command, "DRAWS", 150)
    recipe = published.recipes["Multi-clip DP-SGD"]
    outcome = published.command.measured("clip", recipe, "synthetic", 0, tmp_path, lambda *_: None)
    assert outcome.broken == ()
    assert outcome.claimed == 5.0
    assert outcome.step == pytest.approx(5.0, rel=1e-3)
    assert outcome.audit is not None
    assert 0 < outcome.audit.epsilon < 5.0
    assert outcome.defended.scored == outcome.undefended.scored == 3
    assert outcome.measured == datetime.date.today().isoformat()
