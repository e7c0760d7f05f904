"""Tests of one night: ranks among the draws of the baseline, and evidence with the nights before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vleak.regression.evidence import (
    YEAR,
    Standing,
    bound_log_e_values,
    enough_samples,
    soonest,
    standing,
    starts,
)
from vleak.regression.figures import figures_of
from vleak.regression.plan import PlannedTest
from vleak.regression.ratios import Floats, Ranks, log_e_values, rank_nights
from vleak.regression.records import NightLine, Outcome, Promise, TestRecord
from vleak.results import RunRecord

__all__ = ["Tested", "Tonight"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Tested:
    """Test of one night.

    Attributes:
        record: what came of it. mean: of the figure, as the history keeps it; None where there is none.
        ranks, opened, alarm: as in `NightLine`.
    """

    record: TestRecord
    mean: float | None
    ranks: str
    opened: int
    alarm: bool


class Tonight:
    """One night with those before it.

    Attributes:
        number: of the night, from 1 on. promise: on false alarms.
        tested: what came of each test. not_judged: what could not be tested, and why; both after `judge`.
    """

    def __init__(
        self, run: RunRecord, tests: Sequence[PlannedTest], promise: Promise, lines: Sequence[NightLine]
    ) -> None:
        """Take the run of the night, the tests, and all nights before it."""
        self.number, self.promise = len(lines) + 1, promise
        self.tested: list[Tested] = []
        self.not_judged: list[str] = []
        self._run, self._tests, self._lines = run, tests, lines
        self._table = figures_of(run)
        # Evidence is of one year: the promise is given anew for each.
        self._year = (self.number - 1) // YEAR * YEAR

    def judge(self, progress: Callable[[str, int, int], None]) -> None:
        """Make all tests."""
        for place, test in enumerate(self._tests):
            progress("testing", place, len(self._tests))
            self.tested.append(self._tested(place, test))
        for key, text in {test.key: test.row for test in self._tests if test.key is not None}.items():
            row = self._table.get(key)
            if row is not None and row.failed:
                reasons = dict.fromkeys(row.failed.values())
                which = f"{len(row.failed)} of {len(row.values)} cells failed ({', '.join(row.failed)})"
                self.not_judged.append(f"{text}: {which}: {'; '.join(reasons)}")
        if not self._tests:
            self.not_judged.append("the baseline has no figure that could be tested")

    def _tested(self, place: int, test: PlannedTest) -> Tested:
        values = self._values(test)
        ranks = rank_nights(test.oriented(test.baseline), test.oriented(values)[None])
        before = self._lines[-1] if self._lines else None
        alarm = before is not None and before.alarm[place]
        opened = max(0, (before.opened[place] if before else 1) - 1 - self._year)
        begun = starts(self.number - self._year, opened)
        measured = ~np.isnan(values)
        difference = float((values - test.baseline.mean(0))[measured].mean()) if measured.any() else 0.0
        if test.bound is None:
            evidence, counts = self._by_ranks(place, ranks, begun), test.difference_counts(difference)
        else:
            evidence, counts = self._by_bound(place, test, test.bound, values, begun), True
        stands = standing(
            evidence, begun, threshold=self.promise.log_threshold, alarm=alarm, opened=opened, counts=counts
        )
        if not measured.any():  # nothing says that an alarm is over
            stands = replace(stands, alarm=alarm, opened=opened)
        return self._filled(test, values, ranks, stands)

    def _values(self, test: PlannedTest) -> Floats:
        """(samples,) tonight's figures; NaN where there is none."""
        if test.utility is not None:
            key = (test.utility.pipeline, test.utility.model, test.utility.defense)
            found = (each for each in self._run.utility if (each.pipeline, each.model, each.text) == key)
            each = next(found, None)
            right = each.right if each is not None else ()
            return np.full(len(test.samples), np.mean(right) if right else np.nan)
        row = self._table.get(test.key) if test.key is not None else None
        by_sample = {} if row is None else row.values
        found_values = [by_sample.get(sample, {}).get(test.figure) for sample in test.samples]
        return np.array([np.nan if value is None else value for value in found_values], dtype=np.float64)

    def _by_ranks(self, place: int, tonight: Ranks, begun: np.ndarray) -> Floats:
        codes = [_decoded(line.ranks[place]) for line in self._lines[self._year :]]
        below = np.array([*(code[0] for code in codes), tonight.below[0]], dtype=np.int64)
        tied = np.array([*(code[1] for code in codes), tonight.tied[0]], dtype=np.int64)
        return log_e_values(Ranks(below, tied, tonight.draws), begun)

    def _by_bound(
        self, place: int, test: PlannedTest, bound: float, values: Floats, begun: np.ndarray
    ) -> Floats:
        # A sample that failed was not identified.
        share = float(np.nansum(values)) / len(test.samples)
        series = [line.means[place] or 0.0 for line in self._lines[self._year :]]
        return bound_log_e_values(np.array([*series, share]), len(test.samples), bound, begun)

    def _filled(self, test: PlannedTest, values: Floats, ranks: Ranks, stands: Standing) -> Tested:
        measured = ~np.isnan(values)
        mean = float(values[measured].mean()) if measured.any() else None
        compared = test.baseline[:, measured] if measured.any() else test.baseline
        baseline = (
            test.bound if test.bound is not None else (float(compared.mean()) if compared.size else None)
        )
        quickest = self._soonest(test)
        reason = self._reason(test, mean, quickest)
        outcome: Outcome = "worse" if stands.alarm else "not judged" if reason else "held"
        if reason:
            self.not_judged.append(f"{test.row}, {test.figure}: {reason}")
        record = TestRecord(
            name=test.name, subject=test.subject, figure=test.figure, unit=test.kind.unit, row=test.row,
            samples=int(measured.sum()), draws=test.draws, baseline=baseline, tonight=mean,
            difference=None if mean is None or baseline is None else mean - baseline,
            nights=self.number - self._year,
            since=self._year + stands.start + 1 if stands.log_e > 0 else None,
            log_e=stands.log_e, soonest=quickest, outcome=outcome, reason=reason,
        )  # fmt: skip
        kept = mean if test.bound is None else float(np.nansum(values)) / len(test.samples)
        codes = "" if test.bound is not None else _encoded(ranks)
        return Tested(record, kept, codes, self._year + stands.opened + 1, stands.alarm)

    def _soonest(self, test: PlannedTest) -> int | None:
        if test.bound is not None:
            most = len(test.samples) * math.log1p(0.75 * (1 - test.bound) / test.bound)
            nights = math.ceil((self.promise.log_threshold + math.log(3)) / most)
            return nights if nights <= YEAR else None
        return soonest(test.draws, len(test.samples), self.promise.log_threshold) if test.samples else None

    def _reason(self, test: PlannedTest, mean: float | None, quickest: int | None) -> str:
        """Why it could not be tested; empty where it could."""
        if not test.samples:
            return "the baseline has no draw in which it was measured"
        if quickest is None:
            enough = enough_samples(test.draws, self.promise.log_threshold)
            clips = "more draws in the baseline" if enough is None else f"{enough} clips, or more draws,"
            return (
                f"{len(test.samples)} clips in {test.draws} draws can never alarm within a year; "
                f"{clips} would do"
            )
        return "tonight's run has no such figure" if mean is None else ""


def _encoded(ranks: Ranks) -> str:
    pairs = zip(ranks.below[0], ranks.tied[0], strict=True)
    return "".join(_DIGITS[below] + _DIGITS[tied] for below, tied in pairs)


def _decoded(code: str) -> tuple[list[int], list[int]]:
    numbers = [int(digit, 36) for digit in code]
    return numbers[::2], numbers[1::2]
