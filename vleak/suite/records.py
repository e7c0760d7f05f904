"""Typed records of an entry of the suite."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vleak.results import Interval
from vleak.results.base import Finite, Record, Setting
from vleak.results.records import AuditRecord, EnvironmentRecord

__all__ = [
    "ENTRY_VERSION",
    "AttackedDefense",
    "Attacker",
    "ClaimCheck",
    "ClipFigures",
    "Cost",
    "Entry",
    "EntryContent",
    "Figures",
    "Measured",
    "Refusal",
    "Rule",
    "SituationFigures",
    "Unaware",
]

ENTRY_VERSION = 1
"""Version of the records of an entry."""

Rule = Literal[
    "undefended leaks", "attack knows the defense", "attack is at its best", "claims hold", "all cells"
]
"""Rules that an entry is admitted by."""


class Measured(Record):
    """Mean or share over clips, with its 95 % interval; None where too few clips give one."""

    mean: Finite | None
    low: Finite | None
    high: Finite | None
    n: int = Field(ge=0)

    @classmethod
    def of(cls, interval: Interval) -> Measured:
        """Take an interval over."""
        return cls(mean=interval.mean, low=interval.low, high=interval.high, n=interval.n)

    @property
    def interval(self) -> Interval:
        """The same as `vleak.results` has it."""
        return Interval(self.mean, self.low, self.high, self.n)


class ClipFigures(Record):
    """What one attack got out of one clip.

    Attributes:
        clip: its name.
        recognised: whether the rebuilt clip is nearest to its own truth among the candidates.
        gain_db: PSNR over the best attacker who never sees the update.
        linked: whether the update alone points at the clip; None where that was not asked.
    """

    clip: str
    recognised: bool
    gain_db: Finite
    linked: bool | None = None


class Figures(Record):
    """What one attack got out of all clips behind one defense.

    Attributes:
        clips: that were scored, in the order of the data.
        failed: clips that were not. failures: distinct reasons.
        recognised, gain_db, linked: over the clips.
        verdict: of `vleak.results.Row`.
        flags: distinct health flags of the attack. flagged: clips that have one.
        method: what an attack that chooses among others chose, most frequent first.
        seconds: mean time of the attack a clip.
    """

    clips: tuple[ClipFigures, ...]
    failed: int = Field(ge=0)
    failures: tuple[str, ...]
    recognised: Measured
    gain_db: Measured
    linked: Measured
    verdict: str
    flags: tuple[str, ...]
    flagged: int = Field(ge=0)
    method: tuple[str, ...]
    seconds: Finite | None


class Unaware(Record):
    """The same attack where it takes the message for an undefended one, on the clips on which both ran.

    Attributes:
        clips: what it got out of each of them; linkage is the message's, and not asked again.
        recognised, gain_db: over the clips.
        lead_db: by how much the attacker who knows the defense is ahead, clip by clip.
        ahead: whether this attacker is ahead of that one beyond doubt, in gain or in recognised clips.
    """

    clips: tuple[ClipFigures, ...] = Field(min_length=1)
    recognised: Measured
    gain_db: Measured
    lead_db: Measured
    ahead: bool


class SituationFigures(Record):
    """Figures of one situation of the protocol.

    Attributes:
        name: of the situation.
        data_sha256: digest of private and public clips. weights_sha256: of the attacked model. Rounding may
            change both from machine to machine.
        undefended: what the same attack gets without a defense, in the same run, of the same clips.
        defended: what it gets behind the defense.
        unaware: the same attack without knowing the defense; None where there is nothing to know.
        adaptive: whether the attack used what it knows of the defense in every scored cell.
        knowledge: how it knew: "channel" (stated by the defense), "simulated" (by running the defense on
            public clips), or "none".
        bound: share of clips that a certificate allows to be recognised, a mean; None without one.
        broken: whether a measured share is above what is proven.
        bytes: mean length of an update. bytes_ratio: over that without a defense.
        cosine: of the update to the undefended one.
    """

    name: str
    data_sha256: str
    weights_sha256: str
    undefended: Figures
    defended: Figures
    unaware: Unaware | None
    adaptive: bool
    knowledge: Literal["channel", "simulated", "none"]
    bound: Finite | None
    broken: bool
    bytes: Finite | None
    bytes_ratio: Finite | None
    cosine: Finite | None


class ClaimCheck(Record):
    """Check of what the defense says about its messages, as `vleak conformance` makes it."""

    name: str
    outcome: Literal["holds", "broken", "not checked"]
    detail: str


class Cost(Record):
    """Federated training under the defense.

    Attributes:
        rounds: of training.
        accuracy: share of held-out clips that the trained model has right.
        change: less that without a defense, clip by clip; None without a defense.
        seconds: mean time of a client for one update. seconds_ratio: over that without a defense.
        failure: why the training failed; empty where it did not.
    """

    rounds: int = Field(ge=1)
    accuracy: Measured
    change: Measured | None
    seconds: Finite | None
    seconds_ratio: Finite | None
    failure: str = ""


class AttackedDefense(Record):
    """Defense of an entry.

    Attributes:
        text: as on the command line; entries of equal texts are of one defense.
        label: for tables. settings: all of them.
        epsilon, delta, unit: what it proves of one update; None without a guarantee.
    """

    text: str
    label: str
    settings: dict[str, Setting]
    epsilon: Finite | None
    delta: Finite | None
    unit: str | None

    @property
    def undefended(self) -> bool:
        """Whether the client sends its update as it is."""
        return self.text == "none"


class Attacker(Record):
    """Attack of an entry: as on the command line, and whether it is that of the protocol."""

    text: str
    of_protocol: bool


class Refusal(Record):
    """Rule that an entry breaks.

    Attributes:
        rule: which one. situation: where; None where it is not of one situation.
        reason: what was seen.
    """

    rule: Rule
    situation: str | None
    reason: str


class EntryContent(Record):
    """What was measured of one defense under one attack.

    Attributes:
        kind: what the file is. schema_version: version of these records.
        protocol: its name. protocol_sha256: digest of its description.
        entry: "defense" under the attack of the protocol, or "attack" from outside on a defense.
        environment: versions and machine.
        defense, attack: who meets whom.
        clips: names of the private clips, each a sample.
        situations: in the order of the protocol.
        claims: checks of the contract and of the claims of the defense.
        audit: lower bound on the claimed epsilon; None where none is claimed.
        cost: of training under the defense; None where the protocol measures none.
    """

    kind: Literal["vleak suite entry"] = "vleak suite entry"
    schema_version: int = ENTRY_VERSION
    protocol: str
    protocol_sha256: str
    entry: Literal["defense", "attack"]
    environment: EnvironmentRecord
    defense: AttackedDefense
    attack: Attacker
    clips: tuple[str, ...]
    situations: tuple[SituationFigures, ...]
    claims: tuple[ClaimCheck, ...]
    audit: AuditRecord | None
    cost: Cost | None


class Entry(EntryContent):
    """Whole content of the file of an entry.

    Attributes:
        refusals: rules that it breaks. admitted: whether there are none, so that it is ranked.
        content_sha256: digest of all other fields, by which an edit by accident is found. No signature.
    """

    refusals: tuple[Refusal, ...]
    admitted: bool
    content_sha256: str
