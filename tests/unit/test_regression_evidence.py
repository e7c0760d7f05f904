"""E-processes on ranks: known values, promises over simulated years, and planted changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from years import binary_years, ranked_years

from vleak.regression.evidence import (
    Standing,
    bound_log_e_values,
    enough_samples,
    promise,
    soonest,
    standing,
    starts,
)
from vleak.regression.moves import find_moves
from vleak.regression.ratios import Ranks, log_e_values, rank_nights

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
NIGHTS = 40  # a short year, in which all is as in a long one
THRESHOLD = math.log(NIGHTS / 0.05)
YEARLY = math.log(72 * 365 / 0.05)  # of 72 tests a night for a year


def normal(numbers: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return numbers.normal(size=shape)


def yes_or_no(numbers: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Clips that are recognised seldom, always, or every other time."""
    chances = np.resize([0.5, 0.1, 0.9, 0.0, 1.0], shape[-1])
    return (numbers.random(shape) < chances).astype(np.float64)


def heavy(numbers: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Skewed, with outliers, on a grid."""
    return np.round(numbers.standard_cauchy(shape) ** 2, 1)


def alarms(
    baseline: Floats,
    nights: Floats,
    threshold: float,
    values: Callable[..., Floats] = log_e_values,
    after: int = 0,
) -> NDArray[np.int64]:
    """Night of the first alarm in each year, from 1 on, after some night; 0 where there was none.

    Args:
        baseline: (K, years, clips). nights: (nights, years, clips).
    """
    ranks, first = rank_nights(baseline, nights), np.zeros(baseline.shape[1], np.int64)
    for night in range(after + 1, len(nights) + 1):
        evidence = values(Ranks(ranks.below[:night], ranks.tied[:night], ranks.draws), starts(night, 0))
        alarmed = (evidence.max(0) >= threshold) & (evidence[-1] > 0)
        first[alarmed & (first == 0)] = night
    return first


def by_all_orders(baseline: Floats, nights: Floats) -> float:
    """E-value by its definition: the mean over all ways to break ties, and over the alternatives."""

    def ratio(order: tuple[bool, ...], exponent: float) -> float:
        total, value = 0.0, 1.0
        for place, of_night in enumerate(order, 1):
            weight = exponent if of_night else 1.0
            total += weight
            value *= weight * place / total
        return value

    def mean(sign: float, exponent: float) -> float:
        figures = [(sign * value, False) for value in baseline] + [(sign * value, True) for value in nights]
        ties = [
            sorted(set(itertools.permutations([night for value, night in figures if value == level])))
            for level in sorted({value for value, _ in figures})
        ]
        orders = [tuple(itertools.chain(*parts)) for parts in itertools.product(*ties)]
        return float(np.mean([ratio(order, exponent) for order in orders]))

    return float(np.mean([mean(1, e) for e in (2, 4, 20)] + [mean(-1, 1 / e) for e in (2, 4, 20)]))


def test_ratios_are_those_of_all_orders_of_equal_figures() -> None:
    numbers = np.random.default_rng(0)
    for _ in range(60):
        draws, nights = numbers.integers(1, 5, 2)
        baseline, values = (numbers.integers(0, 3, count).astype(np.float64) for count in (draws, nights))
        ranks = rank_nights(baseline[:, None], values[:, None])
        found = log_e_values(ranks, np.arange(nights))
        for start in range(nights):
            assert math.exp(found[start]) == pytest.approx(by_all_orders(baseline, values[start:]))


def test_one_clip_above_one_draw_by_hand() -> None:
    # P(X > B) is theta / (1 + theta) if X is the largest of theta draws, 1/2 if nothing changed; the other
    # end gives the same.
    value = log_e_values(rank_nights(np.zeros((1, 1)), np.ones((1, 1))), np.arange(1))
    assert math.exp(value[0]) == pytest.approx(2 * np.mean([2 / 3, 4 / 5, 20 / 21]))


@pytest.mark.parametrize("draw", [normal, yes_or_no, heavy])
def test_e_values_are_not_expected_to_grow(draw: Draw) -> None:
    numbers = np.random.default_rng(1)
    baseline, nights = draw(numbers, (4, 4000, 1)), draw(numbers, (5, 4000, 1))
    e_values = np.exp(log_e_values(rank_nights(baseline, nights), np.arange(5)))
    error = e_values.std(1) / math.sqrt(4000)
    assert (e_values.mean(1) <= 1 + 4 * error + 1e-9).all()
    assert (e_values.mean(1) >= 1 - 4 * error - 1e-9).all()  # all of the wealth is bet: a fair game


def test_no_figure_that_falls_makes_the_evidence_larger() -> None:
    numbers = np.random.default_rng(2)
    for _ in range(100):
        baseline = numbers.integers(0, 6, (3, 2)).astype(np.float64)
        nights = numbers.integers(0, 6, (4, 2)).astype(np.float64)
        lower = nights - numbers.integers(0, 3, nights.shape) * (numbers.random(nights.shape) < 0.3)
        lower[numbers.random(nights.shape) < 0.05] = -np.inf  # a cell that failed
        before, after = (log_e_values(rank_nights(baseline, one), np.arange(4)) for one in (nights, lower))
        assert (after <= before + 1e-9).all()


def years(draw: Draw, count: int, nights: int, clips: int, threshold: float) -> int:
    """Years with a false alarm."""
    numbers = np.random.default_rng(3)
    baseline, values = draw(numbers, (5, count, clips)), draw(numbers, (nights, count, clips))
    return int((alarms(baseline, values, threshold) > 0).sum())


@pytest.mark.parametrize("draw", [normal, pytest.param(yes_or_no, marks=pytest.mark.slow)])
def test_short_years_without_change_keep_the_promise(draw: Draw) -> None:
    assert years(draw, 60, NIGHTS, 5, THRESHOLD) <= 0.05 * 60


# --- hundreds of years ------------------------------------------------------------------------------------

CELLS = 6  # of a year: two figures that are yes or no, two Gaussian ones, two with heavy tails
DRAWS, CLIPS = 4, 6


def students(numbers: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Gains with heavy tails: Student's t with three degrees of freedom, in standard deviations."""
    return numbers.standard_t(3, size=shape) / math.sqrt(3)


class Alarms:
    """Nights of the first alarm by year, for some thresholds; 0 where there was none."""

    def __init__(self, years: int, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds
        self.first = np.zeros((len(thresholds), years), np.int64)

    def __call__(self, night: int, evidence: Floats) -> None:
        for first, threshold in zip(self.first, self.thresholds, strict=True):
            alarmed = (evidence.max(0) >= threshold) & (evidence[-1] > 0)
            first[alarmed & (first == 0)] = night


def test_years_at_once_have_the_e_values_of_the_package() -> None:
    numbers = np.random.default_rng(10)
    yes = (numbers.random((DRAWS + 30, 3, CLIPS)) < 0.4).astype(np.int64)
    gains = numbers.normal(size=(DRAWS + 30, 3, CLIPS))

    def compare(figures: Floats) -> Callable[[int, Floats], None]:
        ranks = rank_nights(figures[:DRAWS], figures[DRAWS:])

        def seen(night: int, evidence: Floats) -> None:
            if night % 7 == 0:
                known = Ranks(ranks.below[:night], ranks.tied[:night], DRAWS)
                np.testing.assert_allclose(evidence, log_e_values(known, starts(night, 0)), atol=1e-4)

        return seen

    binary_years(yes[:DRAWS], yes[DRAWS:], compare(yes.astype(np.float64)))
    ranked_years(gains[:DRAWS], gains[DRAWS:], compare(gains))


@pytest.mark.slow
def test_hundreds_of_years_of_all_cells_keep_the_promise() -> None:
    """At most 5 % of years have any false alarm, over all cells and at whatever night one stops.

    The threshold that forgets how many cells and nights there are breaks it: the years are able to.
    """
    years, numbers = 300, np.random.default_rng(11)
    thresholds = math.log(CELLS * 365 / 0.05), math.log(1 / 0.05)
    alarmed = np.zeros((2, years), bool)
    for kind in (yes_or_no, yes_or_no, normal, normal, students, students):
        figures = kind(numbers, (DRAWS + 365, years, CLIPS))
        alarms_of = Alarms(years, thresholds)
        if kind is yes_or_no:
            whole = figures.astype(np.int64)
            binary_years(whole[:DRAWS], whole[DRAWS:], alarms_of)
        else:
            ranked_years(figures[:DRAWS], figures[DRAWS:], alarms_of)
        alarmed |= alarms_of.first > 0
    kept, broken = alarmed.mean(1)
    assert kept <= 0.05
    assert broken > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "median", "most"), [(4, 5, 11), (6, 4, 6), (8, 3, 5)])
@pytest.mark.parametrize("draw", [normal, students])
def test_the_delays_that_the_guide_states(draw: Draw, draws: int, median: int, most: int) -> None:
    """A rise by one standard deviation at 20 clips, with 72 tests a night."""
    numbers, years = np.random.default_rng(12), 300
    baseline, nights = draw(numbers, (draws, years, 20)), draw(numbers, (most + 15, years, 20)) + 1.0
    found = Alarms(years, (YEARLY,))
    ranked_years(baseline, nights, found)
    delays = np.where(found.first[0] > 0, found.first[0], 10**6)
    assert np.median(delays) <= median
    assert (delays <= most).mean() >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / years)  # of 95 %, by so many


@pytest.mark.slow
def test_a_rise_of_one_deviation_of_what_is_recognised_is_found_in_time() -> None:
    """Clips that are recognised every fifth time, then 0.4 oftener, which is one standard deviation."""
    numbers, years = np.random.default_rng(13), 300
    baseline = (numbers.random((6, years, 20)) < 0.2).astype(np.int64)
    nights = (numbers.random((20, years, 20)) < 0.6).astype(np.int64)
    found = Alarms(years, (YEARLY,))
    binary_years(baseline, nights, found)
    delays = np.where(found.first[0] > 0, found.first[0], 10**6)
    assert np.median(delays) <= 4
    assert (delays <= 9).mean() >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / years)


def test_a_bettor_who_forgets_that_the_nights_share_a_baseline_breaks_it() -> None:
    """Planted fault: nights as if each had a baseline of its own, their e-values multiplied."""

    def as_if_independent(ranks: Ranks, begun: NDArray[np.int64]) -> Floats:
        single = np.stack(
            [log_e_values(Ranks(b[None], t[None], ranks.draws), np.arange(1))[0]
             for b, t in zip(ranks.below, ranks.tied, strict=True)]
        )  # fmt: skip
        return np.asarray(np.cumsum(single[::-1], 0)[::-1][begun])

    numbers = np.random.default_rng(4)
    baseline, nights = normal(numbers, (1, 60, 20)), normal(numbers, (20, 60, 20))
    assert (alarms(baseline, nights, THRESHOLD, as_if_independent) > 0).mean() > 0.05
    assert (alarms(baseline, nights, THRESHOLD) > 0).mean() <= 0.05


def test_a_defense_that_became_stronger_and_went_back_alarms_nobody() -> None:
    numbers = np.random.default_rng(5)
    baseline, nights = normal(numbers, (5, 60, 10)), normal(numbers, (NIGHTS, 60, 10))
    nights[:20] -= 2.0
    assert (alarms(baseline, nights, THRESHOLD) > 0).mean() <= 0.05


@pytest.mark.parametrize("change", [0, 40])
def test_a_shift_of_one_deviation_at_twenty_clips_is_found_within_a_week(change: int) -> None:
    """As the guide states it: six draws, 72 tests, any night of the year."""
    numbers = np.random.default_rng(6)
    baseline, nights = normal(numbers, (6, 100, 20)), normal(numbers, (change + 12, 100, 20))
    nights[change:] += 1.0
    delays = alarms(baseline, nights, YEARLY, after=change) - change
    assert (delays > 0).mean() >= 0.99
    assert np.median(delays) <= 4
    assert (delays <= 7).mean() >= 0.95


def test_what_has_no_noise_alarms_the_first_night() -> None:
    baseline = np.zeros((6, 1, 20))
    assert alarms(baseline, np.ones((1, 1, 20)), YEARLY)[0] == 1
    assert alarms(baseline, np.zeros((30, 1, 20)), YEARLY)[0] == 0


def test_some_clips_that_are_recognised_now_are_enough() -> None:
    baseline, nights = np.zeros((6, 1, 20)), np.zeros((6, 1, 20))
    nights[:, :, :5] = 1.0
    assert 1 <= alarms(baseline, nights, YEARLY)[0] <= 4


# --- when it alarms, and when it stops --------------------------------------------------------------------


def test_every_night_starts_and_of_old_ones_one_a_week() -> None:
    assert starts(5, 0).tolist() == [0, 1, 2, 3, 4]
    assert starts(5, 3).tolist() == [3, 4]
    late = starts(100, 0)
    assert late.tolist() == [*range(0, 72, 7), *range(72, 100)]


def stands(evidence: list[float], alarm: bool = False, counts: bool = True) -> Standing:
    begun = np.arange(len(evidence))
    return standing(np.array(evidence), begun, threshold=10.0, alarm=alarm, opened=0, counts=counts)


def test_an_alarm_needs_evidence_and_a_night_that_points_the_same_way() -> None:
    assert stands([11.0, 2.0]).alarm
    assert not stands([9.0, 2.0]).alarm
    assert not stands([11.0, -1.0]).alarm
    assert not stands([11.0, 2.0], counts=False).alarm
    assert stands([11.0, 2.0]).start == 0


def test_an_alarm_is_in_force_until_a_night_is_as_before() -> None:
    assert stands([5.0, 1.0], alarm=True).alarm
    back = stands([50.0, -1.0], alarm=True)
    assert not back.alarm
    assert back.opened == 2  # evidence begins anew with the night after


def test_promise_is_divided_by_tests_and_nights() -> None:
    assert promise(16).log_threshold == pytest.approx(math.log(16 * 365 / 0.05))


def test_too_few_clips_are_told() -> None:
    threshold = promise(72).log_threshold
    assert soonest(1, 1, threshold) is None
    assert soonest(6, 20, threshold) == 1
    few = enough_samples(1, threshold)
    assert few is not None
    assert soonest(1, few, threshold) is not None
    assert soonest(1, few - 1, threshold) is None


# --- certificates -----------------------------------------------------------------------------------------


def bound_alarms(chances: Floats, bound: float, years: int, nights: int) -> int:
    """Years in which a certificate was refuted, of clips that are identified with these chances."""
    numbers = np.random.default_rng(7)
    refuted = 0
    for _ in range(years):
        shares = (numbers.random((nights, len(chances))) < chances).mean(1)
        reached = (
            bound_log_e_values(shares[:night], len(chances), bound, np.arange(night)).max()
            for night in range(1, nights + 1)
        )
        refuted += any(value >= THRESHOLD for value in reached)
    return refuted


def test_a_certificate_that_holds_on_the_mean_is_not_refuted() -> None:
    chances = np.array([0.0, 0.1, 0.2, 0.5])
    assert bound_alarms(chances, 0.2, 60, NIGHTS) <= 3


def test_a_certificate_that_is_broken_is_refuted() -> None:
    assert bound_alarms(np.full(12, 0.6), 0.2, 20, 8) == 20


# --- moves ------------------------------------------------------------------------------------------------


def test_moves_of_level_are_where_they_were_planted() -> None:
    numbers = np.random.default_rng(8)
    series = numbers.normal(size=90) * 0.1
    series[30:] += 1.0
    series[60:] -= 0.5
    series[10] = np.nan
    assert find_moves(series) == [30, 60]
    assert find_moves(np.zeros(50)) == []
    assert find_moves(np.array([0.0] * 5 + [1.0] * 5)) == [5]


def test_a_level_that_did_not_move_seldom_has_one() -> None:
    numbers = np.random.default_rng(9)
    assert sum(bool(find_moves(numbers.normal(size=365))) for _ in range(100)) <= 2
