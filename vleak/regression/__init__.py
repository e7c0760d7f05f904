"""Regression: a nightly run is held against a baseline, with a promise on false alarms over a year."""

from vleak.regression.baseline import baseline_digest, make_baseline, read_baseline, write_baseline
from vleak.regression.history import History, read_history
from vleak.regression.night import MODES, Mode, regress
from vleak.regression.records import (
    AuditState,
    Baseline,
    BaselineRow,
    BaselineUtility,
    ClaimState,
    Finding,
    HistoryHeader,
    LevelMove,
    MovedFigure,
    Night,
    NightLine,
    Promise,
    TestRecord,
)

__all__ = [
    "MODES",
    "AuditState",
    "Baseline",
    "BaselineRow",
    "BaselineUtility",
    "ClaimState",
    "Finding",
    "History",
    "HistoryHeader",
    "LevelMove",
    "Mode",
    "MovedFigure",
    "Night",
    "NightLine",
    "Promise",
    "TestRecord",
    "baseline_digest",
    "make_baseline",
    "read_baseline",
    "read_history",
    "regress",
    "write_baseline",
]
