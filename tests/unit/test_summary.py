from typing import Any

import pytest
from records import make_cell as cell
from records import make_run

from vleak.errors import InputError
from vleak.report.numbers import epsilon_text, number, ratio
from vleak.report.words import (
    caveat_text,
    headline,
    interval_note,
    knowledge_text,
    seeds_sentences,
    verdict_text,
)
from vleak.results import over_seeds
from vleak.results.records import Cell, KnowledgeRecord, RunRecord
from vleak.results.rows import Row, row_key
from vleak.results.statistics import binomial_interval, mean_interval
from vleak.results.summary import strongest, summarise

GAINS = [8.0, 9.0, 10.0, 11.0, 12.0, 9.0, 10.0, 9.5, 10.5, 10.0, 9.0, 10.0]
GREY = {"name": "grey", "baseline": True}


def group(gains: list[float], hits: int, **changes: Any) -> list[Cell]:
    return [cell(n, gain, n < hits, **changes) for n, gain in enumerate(gains)]


def rows(*groups: list[Cell]) -> list[Row]:
    return summarise([record for one in groups for record in one])


def changed(cells: list[Cell], place: int, **changes: Any) -> list[Cell]:
    """Cells of which one has other fields."""
    return [c.model_copy(update=changes) if n == place else c for n, c in enumerate(cells)]


def scored(cell: Cell, **changes: Any) -> Cell:
    """A cell with other scores."""
    assert cell.scores is not None
    return cell.model_copy(update={"scores": cell.scores.model_copy(update=changes)})


def words(row: Row) -> tuple[str, ...]:
    return tuple(caveat_text(row, caveat) for caveat in row.caveats)


def only(*groups: list[Cell]) -> Row:
    (row,) = rows(*groups)
    return row


DP = {"name": "dp", "label": "dp σ=1", "epsilon": 5.0, "delta": 1e-5}
BOUND = {"kind": "identification", "bound": 0.35}


# --- one row ----------------------------------------------------------------------------------------------


def test_a_row_averages_clips():
    row = only(group(GAINS, 9))
    assert row.n == 12
    assert row.psnr_gain_db.mean == pytest.approx(sum(GAINS) / 12)
    assert row.psnr_db == pytest.approx(15 + sum(GAINS) / 12)
    assert (row.identified, row.candidates, row.chance) == (9, 12, 1 / 12)
    assert row.identification == binomial_interval(9, 12)
    assert (row.labels_correct, row.labels) == (9, 12)
    assert (row.bytes, row.bytes_ratio, row.cosine, row.seconds) == (1000, 1.0, 1.0, 2.0)
    assert row.motion_psnr_db == 12.0


def test_failed_cells_are_counted_and_not_averaged():
    broken = cell(12, -50.0, False, status="failed: NaN", scores=None)
    lying = cell(13, -50.0, False, status="failed: out of memory")
    row = only(group(GAINS, 12), [broken, lying])
    assert (row.n, row.failed, row.failures) == (12, 2, ("NaN", "out of memory"))
    assert row.psnr_gain_db.mean == pytest.approx(sum(GAINS) / 12)
    assert "2 failed" in words(row)


def test_a_cell_that_failed_before_its_attack_ran_joins_the_row():
    blank = {"adaptive": False, "seconds": 0.0}
    row = only(group(GAINS, 12), [cell(12, 0.0, False, status="failed: x", scores=None, attack=blank)])
    assert (row.n, row.failed, row.adaptive) == (12, 1, True)


def test_a_clip_that_occurs_twice_counts_once_with_its_last_record():
    row = only(group(GAINS, 12), [cell(0, 0.0, False)])
    assert (row.n, row.identified) == (12, 11)


def test_flagged_cells_stay_in_the_average_and_are_named():
    cells = changed(group(GAINS, 12), 0, flags=("still improving at the end",))
    cells = changed(cells, 1, flags=("still improving at the end", "objective did not fall"))
    row = only(cells)
    assert (row.n, row.flagged) == (12, 2)
    assert row.flags == ("still improving at the end", "objective did not fall")
    assert "2 of 12 flagged" in words(row)


def test_scores_that_are_missing_are_in_no_mean():
    cells = changed(group(GAINS, 12), 2, update=None)
    row = only([scored(cells[0], motion_psnr_db=None), *cells[1:]])
    assert row.motion_psnr_db == 12.0
    assert row.bytes == 1000


def test_further_metrics_are_averaged_by_name():
    cells = group(GAINS, 12)
    values = [{"lpips": 0.25}, {"lpips": 0.75, "other": None}]
    assert only([scored(c, metrics=values[n % 2]) for n, c in enumerate(cells)]).metrics == {"lpips": 0.5}


# --- verdicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "hits", "verdict"),
    [
        (GAINS, 12, "leaks"),
        (GAINS, 1, "leaks"),  # the gain alone
        (
            [-5.0 + 0.1 * n for n in range(12)],
            6,
            "leaks",
        ),  # identification alone: pictures can be ugly and tell all
        ([-5.0 + 0.1 * n for n in range(12)], 1, "below_prior"),
        ([-0.6] * 12, 1, "below_prior"),  # worse than guessing by more than half a decibel: broken
        ([-0.4] * 12, 1, "nothing_found"),
        ([-4.0, 3.0] * 6, 1, "unclear"),  # the interval reaches above -0.5 dB
        ([0.0] * 12, 0, "nothing_found"),
        ([-3.0, 4.0] * 6, 1, "unclear"),
        ([-5.0] * 12, 3, "below_prior"),  # 3 of 12 has its lower end at 5 %, below chance
        ([-5.0] * 12, 4, "leaks"),  # 4 of 12: 10 %, above
        ([9.0] * 3, 0, "too_few_clips"),
        ([9.0] * 3, 3, "leaks"),  # three of three among twelve is beyond chance without any mean
        ([-9.0] * 7, 0, "too_few_clips"),
    ],
)
def test_verdicts(gains: list[float], hits: int, verdict: str):
    assert only(group(gains, hits)).verdict == verdict


def test_a_row_without_a_scored_cell_has_no_result():
    row = only([cell(0, 0.0, False, status="failed: x", scores=None)])
    assert (row.verdict, row.n, row.psnr_db, row.chance) == ("no_result", 0, None, None)


def test_a_single_candidate_never_counts_as_recognition():
    cells = [scored(record, candidates=1) for record in group([-0.4] * 12, 12)]
    assert only(cells).verdict == "nothing_found"


def test_clips_with_twins_are_easier_to_guess():
    counts = [12] * 6 + [6] * 4 + [1] * 2  # what is told from nothing is asked of nobody
    cells = [scored(c, candidates=n) for c, n in zip(group([-5.0] * 12, 0), counts, strict=True)]
    row = only(cells)
    assert row.chance == row.guess == pytest.approx((6 / 12 + 4 / 6) / 10)
    assert (row.candidates, row.identification.n) == (12, 10)


def test_attackers_without_the_update_are_baselines():
    found = rows(group([0.0] * 12, 1, attack=GREY), group(GAINS, 12))
    assert [(row.attack, row.baseline, row.verdict) for row in found] == [
        ("grey", True, "baseline"),
        ("matching", False, "leaks"),
    ]


def test_a_baseline_is_known_by_its_field_alone():
    found = rows(
        group(GAINS, 12, attack="grey"), group([0.0] * 12, 1, attack={"name": "x", "baseline": True})
    )
    assert [(row.attack, row.baseline) for row in found] == [("x", True), ("grey", False)]


# --- certificates -----------------------------------------------------------------------------------------


def test_a_measurement_above_the_certificate_is_loud():
    found = rows(group(GAINS, 12), group(GAINS, 12, defense=DP, certificate=BOUND))
    assert [row.bound_broken for row in found] == [False, True]
    assert found[1].bound == pytest.approx(0.35)
    line = headline(found)[0]
    assert line.startswith("BOUND BROKEN: under dp σ=1 on c3d (untrained) matching recognised 12 of 12 clips")
    assert "where the certificate allows 35 % (chance of that 3e-06)" in line


def test_a_lucky_count_within_the_interval_does_not_break_a_bound():
    row = only(group([-5.0] * 12, 6, defense=DP, certificate=BOUND))
    assert row.identification.mean > 0.35 > row.identification.low
    assert not row.bound_broken


def with_links(cells: list[dict[str, Any]], linked: int) -> list[Cell]:
    return [
        scored(record, linked=place < linked, link_rank=1 if place < linked else 2)
        for place, record in enumerate(cells)
    ]


def test_bounds_that_differ_by_clip_are_averaged_over_the_scored_clips():
    def bound(share: float) -> dict[str, Any]:
        return {"kind": "identification", "bound": share}

    cells = [
        cell(n, gain, defense=DP, certificate=bound(0.2 if n < 6 else 0.6)) for n, gain in enumerate(GAINS)
    ]
    lost = cell(12, defense=DP, status="failed: x", scores=None, certificate=bound(1.0))
    assert only(cells, [lost]).bound == pytest.approx(0.4)
    assert only([lost]).bound == 1.0


def test_what_is_not_rebuilt_may_still_be_linked():
    row = only(with_links(group([-0.4] * 12, 1, defense=DP), 12))
    assert (row.linked, row.linkage.n, row.verdict) == (12, 12, "linkable_no_picture")
    assert only(with_links(group([-0.4] * 12, 1, defense=DP), 1)).verdict == "nothing_found"
    assert only(with_links(group(GAINS, 12), 12)).verdict == "leaks"


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.4] * 6 + [-0.4] * 6, "linkable_no_picture"),  # the interval ends at 0.27 dB
        ([1.0] * 6 + [-1.0] * 6, "linkable_picture_unclear"),  # at 0.66 dB
        ([-5.0] * 7, "linkable_picture_unclear"),  # too few clips for an interval
    ],
)
def test_no_picture_is_said_only_where_nothing_found_would_be(gains: list[float], verdict: str):
    linked = only(with_links(group(gains, 0, defense=DP), len(gains)))
    assert linked.verdict == verdict
    hidden = only(with_links(group(gains, 0, defense=DP), 0))
    assert (hidden.verdict == "nothing_found") == (verdict == "linkable_no_picture")


@pytest.mark.parametrize("gains", [[-0.4] * 12, [1.0] * 6 + [-1.0] * 6])
def test_what_weakens_a_linkable_verdict_reaches_the_headline(gains: list[float]):
    blind = with_links(group(gains, 0, defense=DP, attack={"adaptive": False}), 12)
    compared = rows(with_links(group([-0.4] * 12, 0), 12), blind)
    expected = ("this attack fails even undefended", "the attack does not know the defense")
    assert words(compared[1]) == expected
    assert "; ".join(expected) in headline(compared)[1]
    alone = "not run without defense, so its failure may be the attack's"
    assert alone in headline(rows(blind))[0]
    assert headline(rows(blind))[0].startswith("Linkable, ")


def test_a_link_above_the_certificate_is_loud():
    found = rows(with_links(group([-5.0] * 12, 1, defense=DP, certificate=BOUND), 12))
    assert found[0].bound_broken
    line = "BOUND BROKEN: under dp σ=1 on c3d (untrained) 12 of 12 clips are linked"
    assert headline(found)[0].startswith(line)


# --- broken attacks, several attacks, several seeds -----------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "hits", "linked", "verdict", "said"),
    [
        (-4.0, 0, 0, "below_prior", "attack below its prior, judges nothing"),
        (-10.0, 0, 12, "linkable_below_prior", "linkable; attack below its prior, judges no picture"),
        (-4.0, 9, 12, "leaks", "leaks"),
    ],
)
def test_a_broken_attack_is_never_safety(gain: float, hits: int, linked: int, verdict: str, said: str):
    found = rows(group(GAINS, 12), with_links(group([gain] * 12, hits, defense=DP), linked))
    assert (found[1].verdict, verdict_text(found[1])) == (verdict, said)
    text = " ".join(headline(found))
    assert "Nothing found" not in text
    assert "no picture (" not in text
    assert ("own prior" in text) == (verdict != "leaks")


def test_a_broken_attack_does_not_overrule_one_that_works():
    found = rows(group([0.0] * 12, 0, defense=DP), group([-4.0] * 12, 0, defense=DP, attack="broken"))
    assert {row.attack: row.verdict for row in found} == {
        "matching": "nothing_found", "broken": "below_prior"
    }  # fmt: skip
    assert strongest(found)["dp σ=1"].attack == "matching"
    assert "Nothing found: dp σ=1" in " ".join(headline(found))


def test_a_choice_among_attacks_does_not_find_what_is_not_there():
    """4 of 12 recognised is above chance at 95 % (its lower end is 9.9 %) and at 98.75 % (7.3 %) is not."""
    gains = [-0.4] * 12
    assert only(group(gains, 4, defense=DP)).verdict == "leaks"
    several = rows(*(group(gains, 4 if n == 2 else 1, defense=DP, attack=f"a{n}") for n in range(4)))
    assert [row.verdict for row in several] == ["nothing_found"] * 4
    assert {(row.attacks, row.judged_at_once) for row in several} == {(4, 4)}
    assert several[2].identification == binomial_interval(4, 12)  # which is shown as it is
    clear = rows(*(group(gains, 12 if n == 2 else 1, defense=DP, attack=f"a{n}") for n in range(4)))
    assert [row.verdict for row in clear] == ["nothing_found", "nothing_found", "leaks", "nothing_found"]


def test_baselines_and_other_settings_are_no_further_attacks():
    found = rows(
        group([0.0] * 12, 1, attack=GREY),
        group([-0.4] * 12, 4, defense=DP),
        group([-0.4] * 12, 4, defense=DP, knowledge={"reference_frames": 1}),
        group([-0.4] * 12, 4),
    )
    assert {row.attacks for row in found} == {1}
    assert [row.verdict for row in found if not row.baseline] == ["leaks"] * 3


def seeded(seed: int, *groups: list[Cell], **settings: Any) -> RunRecord:
    record = make_run(
        *(c.model_copy(update={"id": f"{n}"}) for n, c in enumerate(c for g in groups for c in g))
    )
    return record.model_copy(
        update={"settings": record.settings.model_copy(update={"seed": seed, **settings})}
    )


def test_what_leaks_at_any_seed_leaks():
    quiet, loud = [-0.4] * 12, [2.0] * 12
    runs = [
        seeded(0, group(quiet, 1, defense=DP), group(quiet, 1, defense=DP, attack="inverter")),
        seeded(1, group(quiet, 1, defense=DP), group(loud, 8, defense=DP, attack="inverter")),
        seeded(2, group(quiet, 1, defense=DP), group(loud, 9, defense=DP, attack="inverter")),
    ]
    (found,) = over_seeds(runs)
    assert (found.verdict, found.found, found.seeds) == ("leaks", 2, 3)
    assert (found.row.attack, found.row.identified, found.row.judged_at_once) == ("inverter", 9, 6)
    assert seeds_sentences([found]) == [
        "dp σ=1 (labels inferred): leaks at 2 of 3 seeds (most by inverter, the strongest of 2: 9 of 12 "
        "recognised, +2.0 dB)."
    ]
    (none,) = over_seeds(runs[:1])
    assert (none.verdict, none.found, none.seeds) == ("nothing_found", 1, 1)


def test_a_choice_among_seeds_does_not_find_what_is_not_there():
    lucky = [seeded(n, group([-0.4] * 12, 4 if n == 1 else 1, defense=DP)) for n in range(4)]
    (found,) = over_seeds(lucky)
    assert (found.verdict, found.found) == ("nothing_found", 4)


def test_runs_that_differ_in_more_than_the_seed_are_refused():
    first = seeded(0, group(GAINS, 12))
    with pytest.raises(InputError, match="expected another seed for each run"):
        over_seeds([first, first])
    with pytest.raises(
        InputError, match="seed 1 has frames=9 and seed 0 has frames=4; give runs that differ"
    ):
        over_seeds([first, seeded(1, group(GAINS, 12), frames=9)])
    with pytest.raises(InputError, match="at least one run"):
        over_seeds([])


# --- grouping, order, caveats -----------------------------------------------------------------------------


def test_order_is_baselines_then_undefended_then_as_run():
    prune = {"name": "prune", "label": "prune 90 %"}
    found = rows(
        group(GAINS, 12, defense=DP),
        group(GAINS, 12, defense=prune),
        group(GAINS, 12),
        group([0.0] * 12, 1, attack={"name": "public_mean", "baseline": True}),
        group(GAINS, 12, model="second", defense=prune),
        group(GAINS, 12, model="second"),
    )
    assert [(row.model, row.defense, row.attack) for row in found] == [
        ("c3d", "none", "public_mean"),
        ("c3d", "none", "matching"),
        ("c3d", "dp σ=1", "matching"),
        ("c3d", "prune 90 %", "matching"),
        ("second", "none", "matching"),
        ("second", "prune 90 %", "matching"),
    ]


def sent(**settings: Any) -> dict[str, Any]:
    return {"name": "compress", "label": "qsgd 4 bit", "settings": {"codec": "qsgd", "bits": 4} | settings}


def test_defenses_that_share_a_label_stay_apart():
    small, large = sent(bucket=64), sent(bucket=4096)
    found = rows(
        group(GAINS, 12),
        group(GAINS, 12, defense=small),
        group([-0.4] * 12, 0, defense=large),
    )
    assert [(row.defense, row.verdict) for row in found] == [
        ("none", "leaks"),
        ("qsgd 4 bit, bucket=64", "leaks"),
        ("qsgd 4 bit, bucket=4096", "nothing_found"),
    ]
    text = " ".join(headline(found))
    assert "Still leaking: qsgd 4 bit, bucket=64 (" in text
    assert "Nothing found: qsgd 4 bit, bucket=4096 (" in text
    assert found[1].key == row_key(cell(0, 0.0, False, defense=small))


def test_a_label_names_only_the_settings_that_differ():
    strict = DP | {"settings": {"noise_multiplier": 1.0, "delta": 1e-9}}
    usual = DP | {"settings": {"noise_multiplier": 1.0, "delta": 1e-5}}
    found = rows(group(GAINS, 12, defense=strict), group(GAINS, 12, defense=usual))
    assert [row.defense for row in found] == ["dp σ=1, delta=1e-9", "dp σ=1, delta=1e-5"]
    assert [row.defense for row in rows(group(GAINS, 12, defense=usual))] == ["dp σ=1"]
    other = rows(group(GAINS, 12, defense=usual | {"name": "mine"}), group(GAINS, 12, defense=usual))
    assert [row.defense for row in other] == ["dp σ=1, defense=mine", "dp σ=1, defense=dp"]


def test_defenses_of_one_label_in_different_models_stay_apart():
    found = rows(
        group(GAINS, 12, defense=sent(bucket=64)),
        group([-5.0] * 12, 0, defense=sent(bucket=4096), model="second"),
    )
    assert [row.defense for row in found] == ["qsgd 4 bit, bucket=64", "qsgd 4 bit, bucket=4096"]


def test_different_knowledge_is_never_averaged_together():
    granted = {"labels": "granted", "reference_frames": 1, "batch_size": 4}
    found = rows(group(GAINS, 12), group([0.0] * 12, 0, knowledge=granted))
    assert [knowledge_text(row.knowledge) for row in found] == [
        "labels inferred",
        "labels granted, 1 reference frame",
    ]
    assert knowledge_text(KnowledgeRecord(reference_frames=4)) == "labels inferred, 4 reference frames"


def test_bytes_are_compared_with_the_undefended_update_of_the_same_model():
    small = {"bytes": 30, "cosine_to_undefended": 0.4}
    found = rows(
        group(GAINS, 12),
        group(GAINS, 12, defense=DP, update=small),
        group(GAINS, 12, model="b", update=small),
    )
    assert [row.bytes_ratio for row in found] == [1.0, 0.03, 1.0]


def test_an_attack_that_fails_undefended_proves_nothing_about_a_defense():
    found = rows(group([-0.4] * 12, 0), group([-0.4] * 12, 0, defense=DP))
    assert words(found[1]) == ("this attack fails even undefended",)
    text = " ".join(headline(found))
    assert "would prove nothing" in text
    assert "this attack fails even undefended" in text


def test_a_defense_that_was_not_compared_or_not_attacked_knowingly_says_so():
    row = only(group([-5.0] * 12, 0, defense=DP, attack={"adaptive": False}))
    assert words(row) == (
        "not run without defense, so its failure may be the attack's",
        "the attack does not know the defense",
    )
    assert only(group(GAINS, 12, defense=DP)).caveats == ()


# --- the answer -------------------------------------------------------------------------------------------


def test_headline_of_a_good_run():
    found = rows(
        group([9.8] * 12, 12),
        group([-0.4] * 12, 1, defense=DP, certificate=BOUND),
        group([2.1] * 12, 3, defense={"name": "prune", "label": "prune 90 %"}, update={"bytes": 150}),
    )
    assert headline(found) == [
        "Without defense 12 of 12 clips are recognised (+9.8 dB over the best baseline).",
        "Still leaking: prune 90 % (3 of 12 recognised; +2.1 dB).",
        "Nothing found: dp σ=1 (ε 5; 1 of 12 recognised (at most 38 %); −0.4 dB (at most −0.4 dB); "
        "the guarantee allows at most 35 % recognised).",
        "Bytes sent, against no defense: prune 90 % ×0.15; the others as many.",
    ]


def test_where_nothing_was_found_the_upper_ends_are_given():
    gains = [-1.0] * 6 + [0.0] * 6
    found = rows(group(GAINS, 12), with_links(group(gains, 1, defense=DP), 3))
    assert (
        "1 of 12 recognised (at most 38 %), 3 linked (at most 57 %); −0.5 dB (at most −0.2 dB)"
        in (headline(found)[1])
    )
    linked = rows(group(GAINS, 12), with_links(group(gains, 1, defense=DP), 12))
    assert "1 of 12 recognised (at most 38 %), 12 linked; −0.5 dB" in headline(linked)[1]


def test_a_negative_gain_is_said_to_be_below_the_prior():
    (line,) = headline(rows(group([-2.0] * 12, 0)))
    assert "(2.0 dB below the best baseline): attack below its prior, judges nothing, so" in line
    (line,) = headline(rows(group([-0.01] * 12, 0)))
    assert "(+0.0 dB over the best baseline)" in line


@pytest.mark.parametrize(
    ("planned", "first"),
    [
        (56, "12 of 56 cells finished; rows may be missing."),
        (None, "12 cells finished, the run did not; rows may be missing."),
        (12, "Without defense 12 of 12 clips are recognised (+9.8 dB over the best baseline)."),
    ],
)
def test_a_run_that_is_not_finished_says_so_first(planned: int | None, first: str):
    record = make_run(*group(GAINS, 12), planned=planned)
    assert headline(summarise(record), record)[0] == first


def test_an_unfinished_run_without_a_cell_says_both():
    assert headline([], make_run(planned=3)) == [
        "0 of 3 cells finished; rows may be missing.",
        "No attack was scored, so this run says nothing about leakage.",
    ]


def test_headline_judges_a_defense_by_its_worst_attack_and_names_it():
    found = rows(
        group(GAINS, 12),
        group([8.0] * 12, 11, attack="strong"),
        group([-5.0] * 12, 0, defense=DP),
        group([9.0] * 12, 11, defense=DP, attack="strong"),
    )
    text = " ".join(headline(found))
    assert (
        "Without defense 12 of 12 clips are recognised (+9.8 dB over the best baseline) by matching." in text
    )
    assert "Still leaking: dp σ=1 (ε 5; 11 of 12 recognised by strong; +9.0 dB)" in text
    assert "Nothing found" not in text


def test_headline_stays_short_with_many_defenses():
    many = [group(GAINS, 12, defense={"name": "dp", "label": f"dp σ={n}"}) for n in range(40)]
    lines = headline(rows(group(GAINS, 12), *many))
    assert "; and 34 more." in lines[1]
    assert all(len(line) < 500 for line in lines)


def test_headline_of_nothing():
    assert headline([]) == ["No attack was scored, so this run says nothing about leakage."]
    failed = rows([cell(0, 0.0, False, status="failed: x", scores=None)])
    assert "no attack gave a result" in headline(failed)[0]
    assert "1 of 1 clip is recognised" in headline(rows(group([9.0], 1)))[0]


# --- words and numbers ---------------------------------------------------------------------------------


def test_an_attack_with_other_settings_has_a_row_of_its_own():
    found = rows(group(GAINS, 12), group(GAINS, 12, attack={"settings": {"rule": "lbfgs"}}))
    assert [row.attack for row in found] == ["matching", "matching:rule=lbfgs"]


def test_verdicts_and_intervals_in_words():
    row = only(group([-0.4] * 12, 1))
    assert (row.verdict, verdict_text(row)) == ("nothing_found", "nothing found")
    assert interval_note(mean_interval([1.0])) == "1 clip; an interval needs at least 8"
    assert [interval_note(mean_interval([1.0] * n)) for n in (0, 8)] == ["no clip was scored", ""]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (0.03149, "0.0315"),
        (1234.5, "1234"),
        (9.999, "10"),
        (400.0, "400"),
        (2e7, "2e7"),
        (1e-5, "1e-5"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_for_people(value: float | None, text: str):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.876, "4.88"), (47.0, "47"), (999.4, "999"), (999.7, "1.0e3"), (1234.5, "1.2e3"), (5e5, "5.0e5"),
     (2e12, "2.0e12"), (0.0, "0")],
)  # fmt: skip
def test_epsilon_for_people(value: float, text: str):
    assert epsilon_text(value) == text


def test_ratios_for_people():
    assert [ratio(v) for v in (None, 1.0, 0.0315, 1.25, 123.4)] == ["–", "×1", "×0.032", "×1.2", "×120"]
