"""Typed records of a baseline, of a night, and of the lines of a history."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vleak.results import RowKey
from vleak.results.base import Finite, Record
from vleak.results.records import ClientRecord, EnvironmentRecord, SettingsRecord

__all__ = [
    "BASELINE_VERSION",
    "HISTORY_VERSION",
    "NIGHT_VERSION",
    "AuditState",
    "Baseline",
    "BaselineModel",
    "BaselineRow",
    "BaselineUtility",
    "ClaimState",
    "Finding",
    "HistoryHeader",
    "LevelMove",
    "MovedFigure",
    "Night",
    "NightLine",
    "Promise",
    "TestRecord",
]

BASELINE_VERSION = NIGHT_VERSION = HISTORY_VERSION = 1
"""Versions of the three kinds of records."""

Matrix = tuple[tuple[Finite | None, ...], ...]
Subject = Literal["leakage", "message", "attack", "certificate", "bytes", "utility"]
Outcome = Literal["held", "worse", "not judged"]
Verdict = Literal["held", "failed", "not judged"]


class BaselineModel(Record):
    """Model of a pipeline, by its weights."""

    name: str
    pipeline: str
    weights_sha256: str


class BaselineRow(Record):
    """Figures of one defense under one attack.

    Attributes:
        pipeline, model, training_state: as in `vleak.results.RowKey`, like label, defense and attack; labels,
            reference_frames and batch_size; and client.
        undefended: whether there is no defense.
        samples: clips, or all clips of one client where it has several.
        figures: by name, of every draw the value of every sample; None where it was not measured.
        epsilon, delta: what the defense proves; None without a guarantee.
        bound: share that the certificates allow, a mean over the clips; None without one.
        adaptive: whether the attack used what it knows of the defense. defense_knowledge: how it knew.
    """

    pipeline: str
    model: str
    training_state: str
    label: str
    defense: str
    attack: str
    labels: str
    reference_frames: int
    batch_size: int
    client: ClientRecord
    undefended: bool
    samples: tuple[str, ...]
    figures: dict[str, Matrix]
    epsilon: Finite | None = None
    delta: Finite | None = None
    bound: Finite | None = None
    adaptive: bool
    defense_knowledge: Literal["channel", "simulated", "none"]

    @property
    def key(self) -> RowKey:
        """Key of the same row in a run."""
        return RowKey(**{name: getattr(self, name) for name in RowKey._fields})


class BaselineUtility(Record):
    """Accuracy after federated training under one defense.

    Attributes:
        pipeline, model, label, defense, undefended: as in `BaselineRow`.
        clips: that were held out. accuracy: share of them, by draw; None where the training failed.
    """

    pipeline: str
    model: str
    label: str
    defense: str
    undefended: bool
    clips: int
    accuracy: tuple[Finite | None, ...]


class ClaimState(Record):
    """One check of what a defense claims of its messages, or of its contract (`vleak.conformance`).

    Attributes:
        defense: text, as on the command line.
        name: of the claim, or of the part of the contract. settings: of the claim; empty of the contract.
        outcome: "holds", "broken", or "not checked". detail: what was seen, or why it was not checked.
    """

    defense: str
    name: str
    settings: str = ""
    outcome: Literal["holds", "broken", "not checked"]
    detail: str = ""


class AuditState(Record):
    """Audited epsilon of one defense on one model, over the draws of a baseline.

    Attributes:
        pipeline, model: as in `BaselineRow`. defense: text, as there. label: of the defense.
        claimed: epsilon of one release.
        epsilon: largest lower bound of all draws; None where it is infinite. refuted: whether any refuted it.
    """

    pipeline: str
    model: str
    defense: str
    label: str
    claimed: Finite | None
    epsilon: Finite | None
    refuted: bool


class Baseline(Record):
    """Whole content of a baseline: the figures that nights are compared with.

    Attributes:
        kind: what the file is. schema_version: version of these records.
        environment: versions and machine. settings: of the first run.
        data, data_sha256: name and digest of the clips. models: attacked models.
        draws: draws of the randomness of clients and attacks, a run each.
        rows: by defense and attack. utility: by defense, where it was measured.
        audits: audited epsilons, where runs were audited.
        claims: checks of what the defenses claim, as they came out when the baseline was made; None where
            they were not checked.
    """

    kind: Literal["vleak baseline"] = "vleak baseline"
    schema_version: int = BASELINE_VERSION
    environment: EnvironmentRecord
    settings: SettingsRecord
    data: str
    data_sha256: str
    models: tuple[BaselineModel, ...]
    draws: tuple[int, ...] = Field(min_length=1)
    rows: tuple[BaselineRow, ...]
    utility: tuple[BaselineUtility, ...] = ()
    audits: tuple[AuditState, ...] = ()
    claims: tuple[ClaimState, ...] | None = None


class Promise(Record):
    """What is promised of false alarms.

    Attributes:
        alarm: largest chance of any in so many nights, over all tests and at whatever night one stops.
        nights: length of a year. tests: that are made every night.
        log_threshold: logarithm of the e-value that alarms: tests * nights / alarm.
    """

    alarm: Finite
    nights: int
    tests: int
    log_threshold: Finite


class TestRecord(Record):
    """One figure of one row, tested.

    Attributes:
        name: unique among the tests of a baseline.
        subject: what is worse if it alarms. figure: name of the figure. unit: of the figure.
        row: defense and attack, for people.
        samples: compared, clips or clients. draws: of the baseline.
        baseline, tonight, difference: means over samples; None where nothing was measured.
        nights: since the year began, with this one. since: night that the strongest evidence begins with.
        log_e: logarithm of the e-value. soonest: nights until an alarm if every sample were worse than in
            every draw of the baseline.
        outcome: "held", "worse", "not judged". reason: why it was not judged; empty where it was.
    """

    __test__ = False  # not a test of pytest

    name: str
    subject: Subject
    figure: str
    unit: str
    row: str
    samples: int
    draws: int
    baseline: Finite | None
    tonight: Finite | None
    difference: Finite | None
    nights: int
    since: int | None
    log_e: Finite
    soonest: int | None
    outcome: Outcome
    reason: str = ""


class MovedFigure(Record):
    """Figure that a replay did not find again.

    Attributes:
        row: defense and attack. sample: clip or clips. figure: name of the figure. unit: of the figure.
        draw: that was replayed. baseline, tonight: values; None where there is none.
        worse: whether more leaks, more is sent, or less is learned.
    """

    row: str
    sample: str
    figure: str
    unit: str
    draw: int
    baseline: Finite | None
    tonight: Finite | None
    worse: bool


class Finding(Record):
    """Statement of a defense or attack that changed, or that what is sent refutes.

    Attributes:
        row: defense and attack, or defense. what: what changed. baseline, tonight: what was stated.
    """

    row: str
    what: str
    baseline: str
    tonight: str


class LevelMove(Record):
    """Change of the level of a nightly mean.

    Attributes:
        name: of the test. night: first night of the new level. before, after: means.
    """

    name: str
    night: int
    before: Finite
    after: Finite


class Night(Record):
    """Whole judgement of one night.

    Attributes:
        kind: what the record is. schema_version: version of these records.
        verdict: "failed" (more leaks, more is sent, less is learned, a certificate or the attack is weaker,
            a claim or an epsilon broke, or a replay differs); otherwise "not judged" where anything could not
            be, or "held".
        night: its number in the history; 1 without one. draw: of the run that was tested; None without one.
        baseline_sha256: digest of the baseline.
        promise: on false alarms; None where nothing was tested.
        tests: tested figures. findings: changed statements.
        replayed: draws that were replayed. compared: figures that were. moved: those that differ.
        not_judged: what could not be judged, and why. notes: what the baseline lacks, so that nobody asked.
        moves: changes of level that the history shows.
    """

    kind: Literal["vleak night"] = "vleak night"
    schema_version: int = NIGHT_VERSION
    verdict: Verdict
    night: int
    draw: int | None
    baseline_sha256: str
    promise: Promise | None = None
    tests: tuple[TestRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    replayed: tuple[int, ...] = ()
    compared: int = 0
    moved: tuple[MovedFigure, ...] = ()
    not_judged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    moves: tuple[LevelMove, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 held, 1 failed, 2 not judged."""
        return ("held", "failed", "not judged").index(self.verdict)


class HistoryHeader(Record):
    """First line of a history.

    Attributes:
        kind: what the file is. schema_version: version of these records.
        baseline_sha256: digest of the baseline. tests: names of the tests, in the order of the lines.
    """

    kind: Literal["vleak history"] = "vleak history"
    schema_version: int = HISTORY_VERSION
    baseline_sha256: str
    tests: tuple[str, ...]


class NightLine(Record):
    """Line of a history: one night, of every test in the order of the header.

    Attributes:
        night: its number. draw: of its run. date: when it was judged, in UTC. vleak, torch: versions.
        verdict: as in `Night`.
        means: mean figures, None where there is none. log_e: logarithms of the e-values.
        opened: first night that evidence may begin with. alarm: whether an alarm is in force.
        ranks: of every sample two digits to base 36: how many draws of the baseline are better, and how many
            as good.
    """

    night: int = Field(ge=1)
    draw: int
    date: str
    vleak: str
    torch: str
    verdict: Verdict
    means: tuple[Finite | None, ...]
    log_e: tuple[Finite, ...]
    opened: tuple[int, ...]
    alarm: tuple[bool, ...]
    ranks: tuple[str, ...]
