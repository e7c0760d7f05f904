"""Tests of a baseline: one for each figure of each row, all planned before the first night."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vleak.regression.figures import FIGURES, Figure
from vleak.regression.ratios import Floats
from vleak.regression.records import Baseline, BaselineRow, BaselineUtility, Subject
from vleak.results import RowKey

__all__ = ["PlannedTest", "plan_tests", "row_text"]

UTILITY = Figure(unit="share", read=lambda cell: None, step=0.005, replay=1e-6)
"""Accuracy after federated training, which is no figure of a cell."""
_FINEST = 1e-6
_CERTIFIED = ("identified", "linked")


@dataclass(frozen=True)
class PlannedTest:
    """Test of one figure of one row.

    Attributes:
        name: unique in a baseline. row: defense and attack, for people.
        subject: what is worse if it alarms. figure: name of the figure. kind: of it.
        sign: 1 where more is worse, -1 where less is.
        key: key of the row; None for utility. utility: its record, or None.
        samples: names of what is compared.
        baseline: (K, samples), the figures of the baseline.
        bound: share that a certificate allows; None where the baseline is what tonight is compared with.
    """

    name: str
    row: str
    subject: Subject
    figure: str
    kind: Figure
    sign: int
    key: RowKey | None
    utility: BaselineUtility | None
    samples: tuple[str, ...]
    baseline: Floats
    bound: float | None = None

    @property
    def draws(self) -> int:
        """Draws of the baseline."""
        return len(self.baseline)

    def oriented(self, values: Floats) -> Floats:
        """Figures such that larger is worse, on the grid on which they are ranked; NaN becomes -inf.

        What could not be measured counts as better than everything: it never speaks for an alarm.
        """
        if self.kind.unit == "bytes":
            values = np.log(np.maximum(values, 1.0))
        # Also what is yes or no is rounded: a mean over a batch is kept to seven digits.
        placed = self.sign * np.round(values / (self.kind.step or _FINEST))
        return np.where(np.isnan(placed), -np.inf, placed)

    def difference_counts(self, difference: float) -> bool:
        """Whether tonight's mean difference to the baseline is worse by more than the step that counts."""
        step = self.kind.step
        if self.kind.unit == "bytes":
            step *= float(self.baseline.mean())
        return self.sign * difference > step


def plan_tests(baseline: Baseline) -> list[PlannedTest]:
    """Tests of a baseline, in its order.

    Of defended rows: whether more leaks, or more than is proven. Of undefended ones: whether the attack gets
    less. Figures of the message are tested once for all attacks on it, by the first that knows the defense.
    """
    tests, spoken = list[PlannedTest](), _speakers(baseline)
    for row in baseline.rows:
        for name, figure in FIGURES.items():
            if name not in row.figures or figure.leaks is None:
                continue
            if not figure.of_message or spoken[_setting(row)] is row:
                tests += _of_row(row, name, figure)
    return tests + [_of_utility(each) for each in baseline.utility]


def row_text(row: BaselineRow) -> str:
    """Defense and attack of a row, and what sets it apart, for people."""
    client, local = row.client, row.client.local
    extra = [f"{row.reference_frames} reference frames"] if row.reference_frames else []
    extra += [f"batch {client.batch_size}"] if client.batch_size > 1 else []
    extra += ["train mode"] if client.mode == "train" else []
    extra += [f"{local.steps} local steps"] if local is not None else []
    extra += [f"{client.rounds} rounds"] if client.rounds > 1 else []
    return ", ".join([row.label, row.attack, *extra])


def _setting(row: BaselineRow) -> tuple[object, ...]:
    return (*row.key[:5], *row.key[6:])


def _speakers(baseline: Baseline) -> dict[tuple[object, ...], BaselineRow]:
    """By setting, the row that the figures of its message are tested in."""
    chosen: dict[tuple[object, ...], BaselineRow] = {}
    for row in sorted(baseline.rows, key=lambda row: row.defense_knowledge == "none"):
        chosen.setdefault(_setting(row), row)
    return chosen


def _of_row(row: BaselineRow, name: str, figure: Figure) -> list[PlannedTest]:
    matrix = np.array(row.figures[name], dtype=np.float64)
    whole = np.asarray(~np.isnan(matrix).any(0))
    if not whole.any():
        return []
    samples = tuple(sample for sample, kept in zip(row.samples, whole, strict=True) if kept)
    if row.undefended and name == "cosine":  # to itself
        return []
    subject: Subject = ("message" if name == "cosine" else "leakage") if figure.leaks else "bytes"
    sign = 1
    if row.undefended and figure.leaks:  # whoever attacks the undefended model worse attacks no defense well
        subject, sign = "attack", -1
    test = PlannedTest(
        name=f"{_name(row)} | {name}", row=row_text(row), subject=subject, figure=name, kind=figure,
        sign=sign, key=row.key, utility=None, samples=samples, baseline=matrix[:, whole],
    )  # fmt: skip
    if name not in _CERTIFIED or row.bound is None or not 0 < row.bound < 1 or row.batch_size > 1:
        return [test]
    certified = PlannedTest(
        **{**vars(test), "name": f"{test.name} above what is proven", "subject": "certificate", "sign": 1,
           "bound": row.bound}
    )  # fmt: skip
    return [test, certified]


def _name(row: BaselineRow) -> str:
    client = row.client.model_dump_json(exclude_defaults=True)
    parts = [row.pipeline, row.model, row.training_state, row.defense, row.attack, row.labels]
    parts += [f"{row.reference_frames} reference frames"] if row.reference_frames else []
    return " | ".join(parts + ([] if client == "{}" else [client]))


def _of_utility(each: BaselineUtility) -> PlannedTest:
    # One training is one sample, however many clips are held out: all of them share its randomness.
    known = [value for value in each.accuracy if value is not None]
    return PlannedTest(
        name=f"{each.pipeline} | {each.model} | {each.defense} | accuracy", row=f"{each.label}, training",
        subject="utility", figure="accuracy", kind=UTILITY, sign=-1, key=None, utility=each,
        samples=("one training",) if known else (), baseline=np.array(known, dtype=np.float64).reshape(-1, 1),
    )  # fmt: skip
