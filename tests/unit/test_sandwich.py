"""Figures between guess and ceiling: one rule, which accuses honest runs no more often than it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from records import make_cell, make_run
from scipy.stats import binom

from vleak.attacks import LINK_DRAWS, link_chance
from vleak.certificates import identification_bound
from vleak.defenses import DpSgd
from vleak.errors import InputError
from vleak.federated import Channel, Update
from vleak.pipelines.conditions import defense_record
from vleak.report import at_least, audit_note, headline, sandwich_text, seed_note
from vleak.results import Row, summarise
from vleak.results.records import AuditRecord, Cell
from vleak.results.rows import Figure
from vleak.results.sandwich import ACCUSED, with_broken
from vleak.results.statistics import binomial_excess
from vleak.seeds import generator


def certified(index: int, bound: float, *, hit: bool = False, noise: float = 1.0, **scores: Any) -> Cell:
    defense = {"name": "dp", "label": f"dp σ={noise:g}", "settings": {"noise": noise}, "epsilon": 4.0}
    cell = make_cell(
        index, 0.0, hit, defense=defense, certificate={"kind": "identification", "bound": bound},
        clip=f"clip@{noise}@{index}", id=f"c{noise}@{index}",
    )  # fmt: skip
    assert cell.scores is not None
    return cell.model_copy(update={"scores": cell.scores.model_copy(update=scores)})


def figure(row: Row, name: str) -> Figure:
    (found,) = (each for each in row.figures if each.name == name)
    return found


@pytest.mark.parametrize(("successes", "n", "share"), [(0, 5, 0.1), (3, 12, 0.35), (12, 12, 0.35), (9, 9, 1)])
def test_the_excess_is_the_tail_of_the_binomial(successes: int, n: int, share: float) -> None:
    expected = binom.sf(successes - 1, n, share)
    assert binomial_excess(successes, n, share) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("given", [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, 1.1), (1, 5, float("nan"))])
def test_the_excess_refuses_what_is_no_count(given: tuple[int, int, float]) -> None:
    with pytest.raises(InputError, match="expected 0 <= successes"):
        binomial_excess(*given)


def test_none_of_ten_thousand_honest_cells_is_called_broken() -> None:
    # At the ceiling itself, the worst that is honest: 84 runs of ten defenses on twelve clips, which are
    # recognised, linked, and linked by who is told, each as often as is allowed.
    numbers, bounds, broken, loose = np.random.default_rng(0), np.linspace(0.1, 0.95, 10), 0, 0
    for _ in range(84):
        cells = [
            certified(
                n, bound, noise=1 + place, hit=bool(numbers.random() < bound),
                linked=bool(numbers.random() < bound), link_draws=LINK_DRAWS,
                link_chance=numbers.binomial(LINK_DRAWS, bound) / LINK_DRAWS,
            )
            for place, bound in enumerate(bounds)
            for n in range(12)
        ]  # fmt: skip
        rows = summarise(cells)
        assert sum(len(row.figures) for row in rows) == 30
        broken += any(row.bound_broken for row in rows)
        loose += any(row.bound_broken for row in with_broken(rows, 0.1))
    assert broken == 0  # of 84 runs 0.04 are expected at most
    # The rule is no idle one: at a tenth it accuses nearly as often as it may.
    assert 1 <= loose <= 16


def test_each_clip_may_be_easy_where_another_is_hard() -> None:
    # Who always names the same clip is right on that one; what is proven is of the mean over the candidates.
    cells = [certified(n, 0.35, hit=n < 4) for n in range(12)]
    assert not summarise(cells)[0].bound_broken
    stopped = figure(summarise(cells[:4])[0], "recognised")  # eight clips are still to come
    assert (stopped.successes, stopped.trials, stopped.ceiling) == (4, 4, 1.0)
    lost = [certified(n, 0.35, hit=n < 4).model_copy(update={"status": "failed: x" if n >= 4 else "ok"})
            for n in range(12)]  # fmt: skip
    found = figure(summarise(lost)[0], "recognised")
    assert (found.successes, found.trials, found.ceiling, found.broken) == (4, 4, 1.0, False)


def test_ceilings_are_means_over_the_candidates() -> None:
    cells = [certified(n, 0.2 if n < 6 else 0.6, hit=n < 3, linked=n < 5) for n in range(12)]
    row = summarise(cells)[0]
    assert figure(row, "recognised").ceiling == pytest.approx(0.4)
    assert (figure(row, "linked").successes, figure(row, "linked").share) == (5, 5 / 12)
    assert figure(row, "recognised").baseline == pytest.approx(1 / 12)
    alone = certified(12, 1.0, hit=True, candidates=1)  # nothing to be told from
    assert figure(summarise([*cells, alone])[0], "recognised").trials == 12


def test_without_a_certificate_there_is_no_ceiling() -> None:
    (row,) = summarise([make_cell(n, 0.0, True) for n in range(12)])
    assert figure(row, "recognised").ceiling is None
    assert not row.bound_broken
    assert sandwich_text(figure(row, "recognised")) == "8 % ≤ 100 % · –"


def test_more_figures_need_more_evidence() -> None:
    def row(defenses: int) -> Row:
        found = [certified(n, 0.35, hit=place > 0 or n < 11, noise=1 + place)
                 for place in range(defenses) for n in range(12)]  # fmt: skip
        return summarise(found)[0]

    assert row(1).bound_broken  # 8e-5, of 5e-4
    assert not row(10).bound_broken


@pytest.mark.parametrize(("factor", "broken"), [(1.0, False), (0.5, True)])
def test_a_bound_from_another_noise_than_the_channel_states_is_broken(factor: float, broken: bool) -> None:
    count, told = 12, [Update({"a": 5.0 * torch.eye(12)[index]}, 0) for index in range(12)]
    channel, bound = Channel(noise_deviation=factor, clip_norm=1.0), identification_bound(count, 1.0)
    chances = [link_chance(told, n, channel, generator("told", n)) for n in range(count)]
    cells = [certified(n, bound, link_chance=c, link_draws=LINK_DRAWS) for n, c in enumerate(chances)]
    (row,) = summarise(cells)
    assert figure(row, "told").trials == count * LINK_DRAWS
    assert figure(row, "told").broken == row.bound_broken == broken
    assert ("who is told the labels links" in headline([row])[0]) == broken


def test_one_line_has_guess_measured_and_ceiling() -> None:
    assert sandwich_text(Figure("told", 30, 100, 1 / 12, 0.351)) == "8 % ≤ 30 % ≤ 35 %"
    assert sandwich_text(Figure("linked", 0, 12, 1 / 12, 0.351)) == "8 % > 0 % ≤ 35 %"
    assert sandwich_text(Figure("told", 60, 100, 1 / 12, 0.351, 1e-9, broken=True)) == "8 % ≤ 60 % > 35 %"


def audit(**changes: Any) -> AuditRecord:
    given = {
        "pipeline": "raw", "model": "c3d", "defense": "dp σ=1", "text": "dp:noise=1.0", "claimed": 4.38,
        "epsilon": 2.9, "method": "gaussian", "canary": "own clip", "confidence": 1 - ACCUSED / 2,
        "own_confidence": 0.9999, "draws": 250, "e_value": 0.5, "e_limit": 2e4, "e_claim": "noise",
    }  # fmt: skip
    return AuditRecord.model_validate(given | changes)


def audited(**changes: Any) -> list[Row]:
    run = make_run(
        *(certified(n, 0.35) for n in range(12)), make_cell(13, attack={"name": "grey", "baseline": True})
    )
    return summarise(run.model_copy(update={"audits": (audit(**changes),)}))


def test_rows_have_the_audit_of_their_defense() -> None:
    baseline, row = audited()
    assert (baseline.audit, row.audit) == (None, audit())
    assert not row.refuted
    assert at_least(row) == "≥ 2.9"
    assert "an honest run is refuted at most once in 2,000" in audit_note([baseline, row])[0]
    assert audited(text="dp:noise=2.0")[1].audit is None
    assert at_least(audited(epsilon=None)[1]) == "≥ ∞"
    assert at_least(audited(status="not audited: no room")[1]) == ""


def test_noise_that_can_be_searched_through_is_said_beside_what_is_proven() -> None:
    assert "32 bits of them decide about the noise here" in seed_note(audited(searchable=True))[0]
    assert seed_note(audited(searchable=False)) == []
    for unknown in (audited(), audited(text="dp:noise=2.0"), audited(status="not audited: no room")):
        assert "was not audited" in seed_note(unknown)[0]
    assert seed_note(summarise([make_cell(0)])) == []


def test_the_epsilon_of_a_replaced_clip_stands_beside_the_other() -> None:
    defense = DpSgd(noise_multiplier=1.0)
    record = defense_record(defense, defense.privacy())
    assert record.epsilon == pytest.approx(4.377, abs=1e-3)
    assert record.replaced_epsilon == pytest.approx(10.0, abs=0.05)
    cells = [make_cell(n).model_copy(update={"defense": record}) for n in range(8)]
    rows = summarise(make_run(*cells))
    assert rows[0].replaced_epsilon == record.replaced_epsilon
    assert "ε 4.38 (10 if replaced by another)" in " ".join(headline(rows))
    proven = defense.privacy()
    assert proven is not None
    other = defense_record(defense, dataclasses.replace(proven, adjacency="replace one"))
    assert other.replaced_epsilon is defense_record(defense, None).replaced_epsilon is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilon": 6.5}, "500 messages show an epsilon of 6.5 or more (gaussian, canary: own clip)"),
        ({"epsilon": None}, "show an epsilon of ∞ or more"),
        ({"e_value": 3e6}, "500 messages speak against it by an e-value of 3e+06 (noise)"),
    ],
)
def test_a_refuted_claim_is_said_first(changes: dict[str, Any], said: str) -> None:
    rows = audited(refuted=True, **changes)
    assert rows[1].refuted
    assert headline(rows)[0].startswith("CLAIM REFUTED: dp σ=1 on c3d claims epsilon 4.38 of one release")
    assert said in headline(rows)[0]
