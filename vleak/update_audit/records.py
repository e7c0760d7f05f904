"""Typed record of an audit, versioned; its JSON Schema is generated from these types."""

from __future__ import annotations

from typing import Literal

from vleak.results.base import Finite, JsonObject, Record

__all__ = [
    "SCHEMA_VERSION",
    "AttackRun",
    "AuditRecord",
    "Budget",
    "Check",
    "Confidence",
    "DefenseTrial",
    "DetectionScore",
    "FrameLeak",
    "LayerLeak",
    "Measured",
    "Outcome",
    "Pointer",
    "Rehearsal",
    "Risk",
    "RiskLevel",
    "UpdateFacts",
]

SCHEMA_VERSION = 1

Outcome = Literal["fits", "note", "doubt", "wrong"]
RiskLevel = Literal["high", "moderate", "low", "undetermined"]


class Check(Record):
    """One check of consistency.

    Attributes:
        name: what was looked at.
        outcome: "fits"; "note" for what is to be known; "doubt" for what may be wrong; "wrong" for what no
            honest client with these facts sends, so that no risk is judged.
        detail: what was seen, what was expected, and what to do.
    """

    name: str
    outcome: Outcome
    detail: str


class UpdateFacts(Record):
    """Update as it was given.

    Attributes:
        source: where it came from.
        kind: "fedsgd", a gradient, or "fedavg", a delta.
        batch_size: clips behind it. mode: of the model in the client. loss: of the client.
        local: the local training in words; empty of a gradient.
        tensors: how many there are. entries: numbers in them. norm: Euclidean norm of all.
        wire_bytes: as captured.
        notes: what was done to it while it was read.
    """

    source: str
    kind: str
    batch_size: int
    mode: str
    loss: str
    local: str
    tensors: int
    entries: int
    norm: Finite
    wire_bytes: int
    notes: tuple[str, ...]


class AttackRun(Record):
    """One start of one attack on the captured update.

    Attributes:
        attack: as on the command line. start: number of the start, from 0.
        labels: of the answer, granted or inferred.
        explained: cosine of the update that the rebuilt clips cause with the captured one, in [-1, 1].
        iterations, seconds: that it took.
        objective: the attack's own; None for attacks without one.
        flags: that the attack raised about itself.
        failed: why there is no answer; empty where there is one.
    """

    attack: str
    start: int
    labels: tuple[int, ...] = ()
    explained: Finite | None = None
    iterations: int = 0
    seconds: Finite = 0.0
    objective: Finite | None = None
    flags: tuple[str, ...] = ()
    failed: str = ""


class Rehearsal(Record):
    """The first attack on a dummy: a public clip that the same client sends, so that the truth is known.

    Attributes:
        agreement, explained: as of `Confidence`.
        correlation: of rebuilt and true clip beyond the answer without the update, in [-1, 1].
        gain_db: PSNR over that of the answer without the update.
        recognised: whether the true clip is the most similar one among the candidates, and is not so of the
            answer without the update too.
        candidates: how many there were.
        rebuilt: whether it was recognised, and that not by luck: with a correlation of at least 0.3.
    """

    agreement: Finite | None
    explained: Finite
    correlation: Finite
    gain_db: Finite
    recognised: bool
    candidates: int
    rebuilt: bool


class Confidence(Record):
    """How sure the attacker himself is, by the first attack, which dummies met too; the truth is not asked.

    Attributes:
        agreement: mean correlation of the answers of two starts beyond the answer without the update; None
            of a single answer.
        explained: the largest of its starts, see `AttackRun`.
        explained_by_public: the largest that any public clip reaches by itself.
        explained_needed: half way from `explained_by_public` to the smallest of dummies that were
            rebuilt; None where none was.
        frames_verified: frames of which the answers agree and whose update explains as much as is needed.
        frames: of the clip.
    """

    agreement: Finite | None
    explained: Finite | None
    explained_by_public: Finite
    explained_needed: Finite | None
    frames_verified: int
    frames: int


class FrameLeak(Record):
    """One frame of the clip.

    Attributes:
        frame: from 0.
        agreement: as of `Confidence`, of this frame alone.
        sensitivity: share of the squared Jacobian of the update that is due to this frame, in [0, 1].
        verified: whether the attacker would vouch for it.
    """

    frame: int
    agreement: Finite | None
    sensitivity: Finite
    verified: bool


class LayerLeak(Record):
    """One parameter of the model.

    Attributes:
        name: of the parameter. entries: numbers in it.
        sensitivity: share of the squared Jacobian of the update that is due to it, in [0, 1]: what it tells
            of the pixels where every entry carries noise of one size.
        energy: share of the squared norm of the captured update.
        explained: cosine of its part of the update with that of the rebuilt clips.
    """

    name: str
    entries: int
    sensitivity: Finite
    energy: Finite
    explained: Finite


class DetectionScore(Record):
    """Warning score of an update, or check of its model, as a client's guard has them (`vleak.guarding`).

    Attributes:
        name: of the score, a field of `vleak.guarding.WarningScores`, or of the check, a key of
            `vleak.guarding.CHECKS`.
        of: what it was computed of: the "model" alone, the "update" alone, or the "rebuilt clips" in the
            place of the private ones, which is worth as much as they are.
        layer: with the largest figure; empty where there is none.
        figure: higher is more suspicious; None where it is infinite.
        threshold: of the guard, above which it refuses; None where it has none.
        alarm: whether the figure is above it.
        why: what the figure means.
    """

    name: str
    of: Literal["model", "update", "rebuilt clips"]
    layer: str = ""
    figure: Finite | None
    threshold: Finite | None = None
    alarm: bool = False
    why: str


class DefenseTrial(Record):
    """One defense on a dummy, through the first attack, which knows the defense.

    Attributes:
        defense: as on the command line; "none" for the dummy without one.
        correlation, gain_db, recognised, rebuilt: as of `Rehearsal`.
        left: correlation as a share of that without a defense, the first row; None where that is 0 or below.
        cosine: of the defended update with the undefended one, a rough price.
        epsilon: that the defense proves for one update; None where it proves none.
        failed: why it could not be tried; empty where it was.
    """

    defense: str
    correlation: Finite | None = None
    gain_db: Finite | None = None
    recognised: bool | None = None
    rebuilt: bool | None = None
    left: Finite | None = None
    cosine: Finite | None = None
    epsilon: Finite | None = None
    failed: str = ""


class Measured(Record):
    """Scores of one clip against the truth, where it was given.

    Attributes:
        psnr_db, ssim: of the rebuilt clip. psnr_gain_db: over the answer without the update.
        correlation: as of `Rehearsal`.
        recognised: whether the truth is the most similar candidate. rank: 1 is best.
        linked: whether the update alone picks the truth out; link_rank: 1 is best.
        candidates: how many there were, the truth among them.
    """

    psnr_db: Finite
    psnr_gain_db: Finite
    ssim: Finite
    correlation: Finite
    recognised: bool
    rank: int
    linked: bool
    link_rank: int
    candidates: int


class Risk(Record):
    """Verdict of the audit, and why.

    Attributes:
        level: one of `vleak.update_audit.RISK_SCALE`.
        meaning: of the level.
        reasons: that led to it.
    """

    level: RiskLevel
    meaning: str
    reasons: tuple[str, ...]


class Pointer(Record):
    """Place in a public document that a result speaks to; no claim that a rule is met or broken."""

    document: str
    place: str
    result: str


class Budget(Record):
    """What the audit was allowed and what it took.

    Attributes:
        iterations: of one descent. seconds: of all attacks together.
        spent_s: wall time of the attacks.
        skipped: what there was no time for.
    """

    iterations: int
    seconds: Finite
    spent_s: Finite
    skipped: tuple[str, ...]


class AuditRecord(Record):
    """Whole content of the JSON of an audit.

    Attributes:
        schema_version: of this form. vleak: version of the program.
        model: name of the model. parameters: that are trained and sent.
        input_shape: (C, T, H, W) of a clip.
        threat_model: what the attacker holds.
        public: where the public clips come from, and how many there are.
        defense: that the client was said to use; "none" without one.
        seed: of everything that is drawn.
        update: that was audited. consistency: every check. attacks: every start on it.
        rehearsals: on dummies. confidence: of the attacker. frames, layers: where it leaks.
        detection: warning scores of the update, and checks of the model.
        defenses: that were tried on a dummy; the first row is without one.
        measured: by clip, against the truth; empty where none was given.
        risk: the verdict. pointers: into public documents. budget: that was allowed and taken.
        answered_by: attack and start whose rebuilt clips are shown; empty where there is none.
        notes: further sentences for the reader.
    """

    schema_version: int = SCHEMA_VERSION
    vleak: str
    model: str
    parameters: int
    input_shape: tuple[int, int, int, int]
    threat_model: str
    public: str
    defense: str
    seed: int
    update: UpdateFacts
    consistency: tuple[Check, ...]
    attacks: tuple[AttackRun, ...]
    answered_by: str
    rehearsals: tuple[Rehearsal, ...]
    confidence: Confidence
    frames: tuple[FrameLeak, ...]
    layers: tuple[LayerLeak, ...]
    detection: tuple[DetectionScore, ...] = ()
    defenses: tuple[DefenseTrial, ...]
    measured: tuple[Measured, ...]
    risk: Risk
    pointers: tuple[Pointer, ...]
    budget: Budget
    notes: tuple[str, ...]

    def content(self) -> JsonObject:
        """JSON object of the record."""
        return self.model_dump(mode="json")
