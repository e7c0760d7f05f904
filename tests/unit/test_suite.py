"""The suite: its frozen protocol, the rules by which entries are admitted, their files, and the ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from entries import CLIPS, PROTOCOL, TINY, content, entry, figures, unaware
from records import make_cell, make_run

from vleak.defenses import Prune, defense_text, parse_defenses
from vleak.errors import InputError
from vleak.federated import Channel, Defense, Update
from vleak.report import board_markdown, board_page
from vleak.results.records import AuditRecord
from vleak.seeds import generator
from vleak.suite import (
    NEWEST,
    PROTOCOLS,
    ClipFigures,
    Protocol,
    Situation,
    entry_name,
    finished_entry,
    leaderboard,
    leakage_of,
    make_entries,
    ranks_of,
    read_entries,
    read_entry,
    refusals_of,
    write_entry,
)
from vleak.suite.figures import own_part, situation_figures
from vleak.suite.schema import FILE, entry_schema, write_schema

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {PROTOCOL.name: PROTOCOL}
FROZEN = "fec4c4bb84289ad4a0421d65773453f1b7401eec0ec9f36684d67f18e740b631"
"""Digest of the newest protocol. Where it has entries, another protocol is a further one, of another name."""
REFUTED = AuditRecord(
    pipeline="raw", model="m", defense="dp", text="dp", claimed=1.0, epsilon=3.0, confidence=0.99,
    own_confidence=0.99, refuted=True,
)  # fmt: skip
NOTHING = figures([0.0] * CLIPS, 1, verdict="nothing_found")


# --- protocol -----------------------------------------------------------------------------------------------


def test_the_frozen_protocol_is_what_its_entries_were_made_with() -> None:
    assert PROTOCOLS[NEWEST].sha256 == FROZEN


def test_other_clips_than_those_of_the_protocol_are_found_out() -> None:
    small = TINY.model_copy(update={"clips": 2, "size": 8})
    kept = small.model_copy(update={"clip_means": small.drawn_means()})
    kept.check_clips()
    moved = [list(row) for row in kept.clip_means]
    moved[1][3] += 0.01
    with pytest.raises(InputError, match="generator of synthetic clips"):
        kept.model_copy(update={"clip_means": tuple(map(tuple, moved))}).check_clips()


# --- admission ----------------------------------------------------------------------------------------------


def test_an_entry_without_fault_is_admitted() -> None:
    assert entry().admitted
    assert entry("none").admitted


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("undefended leaks", {"change": {"undefended": NOTHING}}),
        ("attack knows the defense", {"change": {"adaptive": False}}),
        ("attack knows the defense", {"change": {"knowledge": "none"}}),
        ("attack is at its best", {"change": {"unaware": unaware(ahead=True)}}),
        ("claims hold", {"change": {"broken": True}}),
        ("claims hold", {"audit": REFUTED}),
        ("claims hold", {"claims": ({"name": "clip norm", "outcome": "broken", "detail": "norm 2"},)}),
        ("all cells", {"change": {"defended": figures([1.0] * (CLIPS - 1), 0)}}),
        ("all cells", {"change": {"undefended": figures([1.0] * CLIPS, 0, failed=1, failures=("NaN",))}}),
    ],
)
def test_each_rule_refuses_what_it_is_for(rule: str, changes: dict[str, Any]) -> None:
    refusals = entry(**changes).refusals
    assert [refusal.rule for refusal in refusals] == [rule]
    assert refusals[0].situation == ("steps" if "change" in changes else None)
    assert refusals[0].reason


@pytest.mark.parametrize(
    "changes",
    [
        {"change": {"unaware": unaware(ahead=False)}},
        {"change": {"knowledge": "simulated"}},
        {"claims": ({"name": "clip norm", "outcome": "not checked", "detail": "too small"},)},
        {"audit": REFUTED.model_copy(update={"refuted": False})},
        {"text": "none", "change": {"adaptive": False, "knowledge": "none"}},
    ],
)
def test_no_rule_refuses_more_than_that(changes: dict[str, Any]) -> None:
    assert entry(**changes).admitted


# --- figures of a run ---------------------------------------------------------------------------------------


def planted_run() -> Any:
    prune = {"name": "prune", "label": "prune 90 %", "settings": Prune(fraction=0.9).settings()}
    other = {"name": "dp", "label": "dp"}
    known = {"defense_knowledge": "channel"}
    cells = [make_cell(n, 8.0 + 0.1 * n, True, id=f"a{n}") for n in range(10)]
    cells += [
        make_cell(n, 1.0, n < 3, id=f"b{n}", defense=prune, attack=known, scores={"linked": n < 4},
                  non_adaptive={"psnr_gain_db": 3.0 + 0.1 * n, "identified": False} if n < 9 else None)
        for n in range(10)
    ]  # fmt: skip
    cells += [make_cell(n, 5.0, True, id=f"c{n}", defense=other, attack=known) for n in range(10)]
    return make_run(*cells)


def test_figures_of_a_situation_are_those_of_the_defense_alone() -> None:
    run, defense = planted_run(), Prune(fraction=0.9)
    found = situation_figures("gradient", own_part(run, defense), defense)
    assert found.undefended.verdict == "leaks"
    assert (found.undefended.recognised.mean, found.defended.recognised.mean) == (1.0, 0.3)
    assert found.defended.gain_db.mean == pytest.approx(1.0)
    assert sum(bool(clip.linked) for clip in found.defended.clips) == 4
    assert (found.adaptive, found.knowledge) == (True, "channel")
    assert found.unaware is not None
    assert found.unaware.ahead
    assert len(found.unaware.clips) == 9


def test_a_failed_clip_is_missing_from_the_figures() -> None:
    run, defense = planted_run(), Prune(fraction=0.9)
    failed = {"status": "failed: out of memory", "scores": None}
    cells = [cell.model_copy(update=failed) if cell.id == "b2" else cell for cell in run.cells]
    found = situation_figures("x", own_part(run.model_copy(update={"cells": tuple(cells)}), defense), defense)
    assert (len(found.defended.clips), found.defended.failed) == (9, 1)
    assert found.defended.failures == ("out of memory",)


# --- files --------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_that_of_the_records(tmp_path: Path) -> None:
    assert write_schema(tmp_path).read_bytes() == (ROOT / FILE).read_bytes(), "python -m vleak.suite.schema"
    assert set(entry().model_dump()) == set(entry_schema()["properties"])


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = entry(change={"unaware": unaware(ahead=False)}, audit=REFUTED)
    assert read_entry(write_entry(made, tmp_path / "e.json"), KNOWN) == made


def test_names_of_files_are_those_of_defenses() -> None:
    assert entry_name("dp:noise_multiplier=0.5") == "dp-noise_multiplier-0.5.json"
    assert entry_name("a/../b:C", "mine:Attack") == "a-..-b-C--by-mine-Attack.json"
    assert "/" not in entry_name("../../x")


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    written = entry().model_dump(mode="json")
    change(written)
    return json.dumps(written).encode()


def _admit_by_hand(written: dict[str, Any]) -> None:
    """Admit a refused entry, and write the digest anew."""
    bad = entry(change={"broken": True})
    forged = bad.model_copy(update={"refusals": (), "admitted": True})
    from vleak.suite.files import _digest

    written |= forged.model_copy(update={"content_sha256": _digest(forged)}).model_dump(mode="json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"kind": "vleak suite ent', "cannot be read as JSON, it is truncated"),
        (b"[1]", "holds a list, expected the object"),
        (b'{"kind": "vleak baseline"}', "holds no entry of the suite"),
        (edited(lambda w: w.update(schema_version=9)), "schema_version is 9, this vleak reads 1; update"),
        (edited(lambda w: w.pop("clips")), "clips is missing"),
        (
            edited(lambda w: w.update(protocol="planted-0")),
            "is of the protocol 'planted-0', expected planted",
        ),
        (edited(lambda w: w.update(protocol_sha256="0")), "made with another version of planted-1"),
        (edited(lambda w: w["situations"].pop()), "expected the situations gradient, steps of 12 clips"),
        (edited(lambda w: w["situations"][0].update(bytes=1)), "not those of its digest, it was edited"),
        (edited(_admit_by_hand), "whether it is admitted does not follow"),
    ],
)
def test_a_file_that_is_no_entry_is_refused_in_a_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "e.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        read_entry(path, KNOWN)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_bad_entry_has_no_leaderboard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no entry"):
        read_entries(tmp_path, PROTOCOL)
    write_entry(entry(), tmp_path / "a.json")
    assert len(read_entries(tmp_path, PROTOCOL)) == 1
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json cannot be read"):
        read_entries(tmp_path, PROTOCOL)
    with pytest.raises(InputError, match="is no folder"):
        read_entries(tmp_path / "a.json", PROTOCOL)


# --- ranks --------------------------------------------------------------------------------------------------


def test_leakage_has_its_known_values() -> None:
    def leakage(**fields: Any) -> float:
        return leakage_of(ClipFigures(clip="a", **fields), 10.0)

    assert leakage(recognised=True, gain_db=12.0, linked=True) == 1.0
    assert leakage(recognised=False, gain_db=-3.0, linked=False) == 0.0
    assert leakage(recognised=True, gain_db=5.0, linked=False) == pytest.approx(0.5)
    assert leakage(recognised=False, gain_db=5.0) == pytest.approx(0.25)


def test_ranks_have_their_known_values() -> None:
    noise = 0.05 * torch.randn(12, 4, generator=generator("known"))
    ranks = ranks_of(noise + torch.tensor([0.9, 0.1, 0.5, 0.5]))
    assert [(rank.low, rank.high) for rank in ranks] == [(4, 4), (1, 1), (2, 3), (2, 3)]
    assert (ranks[0].rank, ranks[1].rank) == (4, 1)
    equal = ranks_of(torch.ones(12, 3))
    assert [tuple(rank) for rank in equal] == [(1, 1, 3)] * 3
    assert [tuple(rank) for rank in ranks_of(torch.rand(9, 1, generator=generator("one")))] == [(1, 1, 1)]
    with pytest.raises(InputError, match="two clips or more"):
        ranks_of(torch.ones(1, 3))


def test_few_clips_tell_nothing_apart() -> None:
    values = torch.arange(4.0)[None] + 0.01 * torch.randn(4, 4, generator=generator("few"))
    assert all((rank.low, rank.high) == (1, 4) for rank in ranks_of(values))


def test_more_clips_than_can_be_gone_through_are_flipped_at_random() -> None:
    values = 0.1 * torch.randn(30, 3, generator=generator("many")) + torch.tensor([0.0, 1.0, 1.0])
    assert [rank.low for rank in ranks_of(values)] == [1, 2, 2]


@pytest.mark.parametrize("means", [(0.0,) * 6, (0.0, 0.0, 0.3, 0.3, 0.6, 0.9)])
def test_all_rank_intervals_hold_together(means: tuple[float, ...]) -> None:
    """Clips are heavy-tailed, of unequal spread, and shared by all defenses."""
    missed, numbers, level = 0, generator("coverage", means), torch.tensor(means)
    spread = torch.linspace(0.05, 0.6, len(means))
    below = (level[:, None] < level[None]).sum(0)
    above = (level[:, None] > level[None]).sum(0)
    for _ in range(200):
        own = torch.randn(10, len(means), generator=numbers) * torch.rand(10, 1, generator=numbers) ** 2
        shared = torch.randn(10, 1, generator=numbers)
        ranks = ranks_of(level + spread * own + shared)
        missed += not all(
            rank.low <= 1 + int(below[j]) and rank.high >= len(means) - int(above[j])
            for j, rank in enumerate(ranks)
        )
    assert missed <= 19  # of 200 at 5 %: more have a chance below 1 %


# --- leaderboard --------------------------------------------------------------------------------------------

STRONG, WEAK = figures([0.2 + 0.02 * n for n in range(CLIPS)], 1, 1), figures([6.0] * CLIPS, 11, 12)


def test_the_strongest_admitted_attack_of_a_defense_counts() -> None:
    entries = [
        entry("a", STRONG), entry("a", WEAK, attack="mine:Attack"),
        entry("a", figures([30.0] * CLIPS, 12), attack="refused:Attack", change={"adaptive": False}),
        entry("a", figures([20.0] * CLIPS, 3), attack="gains:Attack"), entry("b", STRONG),
    ]  # fmt: skip
    board = leaderboard(entries, PROTOCOL)
    assert [s.entry.defense.text for s in board.standings] == ["b", "a"]
    first, last = board.standings
    assert last.entry.attack.text == "mine:Attack"  # recognises more than what gains more
    assert [other.attack.text for other in last.others] == ["gains:Attack", "strongest"]
    assert (tuple(first.rank), tuple(last.rank)) == ((1, 1, 1), (2, 2, 2))
    assert (last.linked.mean, last.linked.high) == (1.0, 1.0)
    assert 0.7 < last.linked.low < 0.75  # twelve of twelve by Clopper and Pearson
    assert [each.attack.text for each in board.refused] == ["refused:Attack"]


def test_a_defense_with_a_broken_claim_is_not_ranked_by_another_attack() -> None:
    board = leaderboard([entry("a", audit=REFUTED), entry("a", attack="mine:A"), entry("b")], PROTOCOL)
    assert [s.entry.defense.text for s in board.standings] == ["b"]
    assert [each.attack.text for each in board.disqualified] == ["mine:A"]


def test_two_entries_of_one_defense_and_attack_are_refused() -> None:
    with pytest.raises(InputError, match="two entries are of strongest on a"):
        leaderboard([entry("a"), entry("a", WEAK)], PROTOCOL)


def test_both_attackers_are_compared_on_the_same_clips() -> None:
    known = figures([float(n) for n in range(CLIPS)], 2)
    (standing,) = leaderboard(
        [entry("a", known, change={"unaware": unaware(ahead=False)})], PROTOCOL
    ).standings
    assert standing.aware_gain_db == pytest.approx(1.5)  # of clips 0 to 3
    assert standing.unaware_gain_db == pytest.approx(1.0)
    assert standing.aware_recognised == pytest.approx(0.5)
    assert standing.unaware_recognised == pytest.approx(0.25)


def test_the_page_escapes_names_and_lists_refusals_apart() -> None:
    evil = "<script>alert(1)</script>"
    refused = entry("bad", change={"undefended": NOTHING})
    board = leaderboard(
        [entry(evil, STRONG), entry("b", WEAK, attack="mine:<b>|A"), entry("none", WEAK), refused], PROTOCOL
    )
    page = board_page(board)
    assert evil not in page
    assert "mine:<b>" not in page
    assert "mine:&lt;b&gt;|A" in page
    ranked, _, rest = page.partition('id="refused"')
    assert ">bad<" not in ranked
    assert "undefended leaks (steps)" in rest
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    table = board_markdown(board)
    assert evil not in table
    assert "mine:&lt;b&gt;\\|A" in table
    assert table.count("\n- bad by strongest: undefended leaks") == 1


def test_a_page_without_admitted_entries_says_so() -> None:
    page = board_page(leaderboard([entry("a", audit=REFUTED)], PROTOCOL))
    assert "No entry is admitted" in page


# --- the script of our own entries --------------------------------------------------------------------------


def test_the_script_makes_what_is_missing_and_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import suite_entries as script

    assert len(script.DEFENSES) >= 16
    assert len({entry_name(text) for text in script.DEFENSES}) == len(script.DEFENSES)
    for text in script.DEFENSES:  # spelled as entries are, by whose names the script finds them again
        (strength,) = parse_defenses(text)
        assert defense_text(strength) == text
    monkeypatch.setattr(script, "read_entry", lambda path: read_entry(path, KNOWN))
    monkeypatch.setattr(script, "find_protocol", lambda name: PROTOCOL)
    asked = ["a", "b", "c", "d", "e", "f"]
    for text in ("b", "d"):
        write_entry(entry(text), tmp_path / entry_name(text))
    (tmp_path / "d.json").write_text("{")
    left = script.missing(tmp_path, asked)
    assert left == ["a", "c", "d", "e", "f"]
    assert script.groups(left, 2) == [("a", "d", "f"), ("c", "e")]
    assert [len(group) for group in script.groups(script.DEFENSES, 2)] == [3] * 6
    assert script.groups([], 2) == []
    (tmp_path / "d.json").unlink()
    page = script.page(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", tmp_path)
    assert "1 defense ranked" in page
    assert "old" not in page
    assert "| 1 \\[1–1\\] | b | strongest |" in page


def test_the_committed_table_is_that_of_the_committed_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import suite_entries as script

    page = (ROOT / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert script.page(page, ROOT / "docs" / "suite") == page, "run python benchmarks/suite_entries.py"


# --- making -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defenses", "attack", "message"),
    [
        (["nosuch"], None, "unknown defense 'nosuch'"),
        (["dp"], None, "a sweep of 4 strengths, an entry is of one; give it, such as dp:"),
        (["none"], "nosuch", "unknown attack 'nosuch'"),
        ([], None, "expected at least one"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    defenses: list[str], attack: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_entries(TINY, defenses, attack)


@pytest.mark.slow
def test_an_entry_is_the_same_beside_others_and_alone() -> None:
    dp = "dp:noise_multiplier=0.5+prune:fraction=0.9"
    none, together = make_entries(TINY, ["none", dp])
    (alone,) = make_entries(TINY, [dp])
    assert together.defense.epsilon is not None
    assert together.audit is not None
    assert together.cost is not None
    assert {refusal.rule for refusal in none.refusals} == {
        "undefended leaks"
    }  # three iterations find nothing
    for one, other in zip(together.situations, alone.situations, strict=True):
        assert one.defended.clips == other.defended.clips
        assert one.undefended.clips == other.undefended.clips
        assert one.unaware is not None
        assert other.unaware is not None
        assert one.unaware.clips == other.unaware.clips
    assert finished_entry(together) == together
    assert refusals_of(content()) == ()


@dataclass(frozen=True, kw_only=True)
class Masking(Defense):
    """Sends the gradient as it is, and states that nothing in it is a measurement."""

    name: ClassVar[str] = "masking"

    def channel(self, update: Update) -> Channel:
        return Channel(masks={n: torch.zeros_like(t, dtype=torch.bool) for n, t in update.tensors.items()})


@pytest.mark.slow
def test_a_defense_that_misleads_the_attack_is_refused() -> None:
    protocol = Protocol(
        name="small-1", about="a test", situations=(Situation(name="gradient"),), clips=10, frames=4, size=16,
        seed=1000, attack="matching", iterations=60, non_adaptive=10,
    )  # fmt: skip
    none, masking = make_entries(protocol, ["none", Masking()])
    assert none.admitted
    assert {refusal.rule for refusal in masking.refusals} == {"attack is at its best"}
