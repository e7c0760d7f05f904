"""Typed records of a run: what results.json holds, validated on reading and on writing."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, field_validator

from vleak.registry import write_reference
from vleak.results.audit import AuditBound, AuditRecord
from vleak.results.base import Finite, Record, Setting
from vleak.results.ceilings import CeilingRecord
from vleak.results.client import ClientRecord, LocalRecord
from vleak.results.non_adaptive import NonAdaptiveRecord
from vleak.results.scores import (
    BaselineScore,
    EnhancedScores,
    EnhancementRecord,
    OrderScores,
    Scores,
    SegmentScores,
)
from vleak.results.settings import SettingsRecord
from vleak.results.utility import UtilityRecord

__all__ = [
    "SCHEMA_VERSION",
    "UNDEFENDED",
    "AttackRecord",
    "AuditBound",
    "AuditRecord",
    "BaselineScore",
    "CeilingRecord",
    "Cell",
    "CertificateRecord",
    "ClientRecord",
    "DataRecord",
    "DefenseRecord",
    "EnhancedScores",
    "EnhancementRecord",
    "EnvironmentRecord",
    "Finite",
    "KnowledgeRecord",
    "LocalRecord",
    "ModelRecord",
    "NonAdaptiveRecord",
    "OrderScores",
    "Record",
    "RunHeader",
    "RunRecord",
    "Scores",
    "SegmentScores",
    "Setting",
    "SettingsRecord",
    "UpdateRecord",
    "UtilityRecord",
]

SCHEMA_VERSION = 2
"""Version of the records; `vleak.results.migrations` reads older ones."""
UNDEFENDED = "none"
"""Name of the defense that changes nothing."""


def _text(name: str, settings: dict[str, Setting]) -> str:
    return write_reference(name, {key: value for key, value in settings.items() if value is not None})


class DefenseRecord(Record):
    """Defense of a cell, and what it proves about one update.

    Attributes:
        name: name in the registry, or the class name of a defense from outside.
        label: short name with the strength, for tables.
        settings: hyper-parameters by name.
        epsilon: privacy loss of one release in nats, None without a guarantee.
        replaced_epsilon: the same where a unit is replaced by another, and not by zero as the adjacency says.
        delta: failure probability of the guarantee.
        unit: what is protected, such as "one clip".
        adjacency: how neighbouring batches differ.
        training_epsilon: privacy loss of the whole training run.
    """

    name: str
    label: str
    settings: dict[str, Setting] = Field(default_factory=dict)
    epsilon: Finite | None = None
    replaced_epsilon: Finite | None = None
    delta: Finite | None = None
    unit: str | None = None
    adjacency: str | None = None
    training_epsilon: Finite | None = None

    @property
    def text(self) -> str:
        """Name and settings in one text, which tells defenses of one label apart."""
        return _text(self.name, self.settings)

    @property
    def undefended(self) -> bool:
        """Whether the client sent its update as it is."""
        return self.name == UNDEFENDED


class AttackRecord(Record):
    """Attack of a cell, and how it ran.

    Attributes:
        name: name in the registry, or the class name of an attack from outside.
        baseline: whether it is an attacker who never sees the update.
        counterpart: name of the adaptive attack that this is the non-adaptive form of; None where there is
            none.
        adaptive: whether it used what it knows of the defense.
        defense_knowledge: how it knew: "channel" (stated by the defense), "simulated" (by running the
            defense on public clips), or "none".
        settings: hyper-parameters that differ from the defaults of the attack.
        iterations: iterations of all restarts together.
        restarts: restarts that ran.
        seconds: wall time.
        engine: "native", "reference", or "none" for attacks that do not iterate.
        objective: the attack's own objective of its answer; None without one.
        nan_at: iteration at which the objective became NaN; None if it did not.
        method: of an attack that chooses among others the one that gave the answer, as on the command line,
            or several with their weights; "baseline" for the answer without the update; None where it
            chooses none.
        evidence: by method the mean gain in dB on public clips that its choice went by.
    """

    name: str
    baseline: bool = False
    counterpart: str | None = None
    adaptive: bool = False
    defense_knowledge: Literal["channel", "simulated", "none"] = "none"
    settings: dict[str, Setting] = Field(default_factory=dict)
    iterations: int = Field(0, ge=0)
    restarts: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0)
    engine: str = "none"
    objective: Finite | None = None
    nan_at: int | None = None
    method: str | None = None
    evidence: dict[str, Finite] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """Name and settings in one text, such as "matching:rule=lbfgs"."""
        return _text(self.name, self.settings)


class KnowledgeRecord(Record):
    """What the threat model granted the attacker of a cell.

    Attributes:
        labels: "inferred" by the attack or "granted" to it.
        reference_frames: frames of the scene that the attacker holds.
        batch_size: clips behind the update.
        defense: whether the attacker knows the defense.
        public_clips: public clips that the attacker holds.
        public_from: "other-files" where none of them shares its file with an attacked clip, "same-file"
            where some do; None without any, or where nothing says so, as in runs from before the choice.
    """

    labels: Literal["inferred", "granted"] = "inferred"
    reference_frames: int = Field(0, ge=0)
    batch_size: int = Field(1, ge=1)
    defense: bool = True
    public_clips: int = Field(0, ge=0)
    public_from: Literal["other-files", "same-file"] | None = None


class CertificateRecord(Record):
    """Bound that a defense proves: at most this share of clips can be identified."""

    kind: Literal["identification"]
    bound: Finite


class UpdateRecord(Record):
    """Update as it was sent.

    Attributes:
        bytes: bytes on the wire.
        cosine_to_undefended: cosine to the update without defense.
        changed_fraction: share of entries that the defense changed.
    """

    bytes: int = Field(ge=0)
    cosine_to_undefended: Finite
    changed_fraction: Finite


class Cell(Record):
    """One clip behind one defense under one attack.

    Attributes:
        id: unique in the run.
        pipeline: "raw" or "feature".
        model: name of the model. training_state: how far it was trained.
        clip: name of the clip. clip_index: its position in the data.
        seed: seed of the client's randomness.
        client: settings of the client. batch: positions of all its clips.
        order_identifiable: whether the update depends on the order of frames at all.
        scores: None where the cell failed.
        enhanced: None without enhancement.
        non_adaptive: the same attack without knowledge of the defense; None where it was not asked for, and
            where there is no defense or no knowledge of it.
        certificate: None without a guarantee. ceilings: further ones; None in older runs.
        flags: health flags of the attack.
        status: "ok", or "failed: " and the reason; empty before the cell has run.
        media, media_enhanced: files of the pictures, relative to the folder of the run.
    """

    id: str
    pipeline: str
    model: str
    training_state: str
    defense: DefenseRecord
    attack: AttackRecord
    knowledge: KnowledgeRecord
    clip: str
    clip_index: int = Field(ge=0)
    seed: int
    client: ClientRecord = ClientRecord()
    batch: tuple[int, ...] = ()
    order_identifiable: bool = True
    scores: Scores | None = None
    enhanced: EnhancementRecord | None = None
    non_adaptive: NonAdaptiveRecord | None = None
    certificate: CertificateRecord | None = None
    ceilings: CeilingRecord | None = None
    update: UpdateRecord | None = None
    flags: tuple[str, ...] = ()
    status: str = Field("ok", pattern=r"^(ok$|failed: |$)")
    media: str | None = None
    media_enhanced: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the cell was scored."""
        return self.status == "ok" and self.scores is not None

    @property
    def failure(self) -> str | None:
        """Reason why the cell failed; None where it did not."""
        return None if self.ok else self.status.removeprefix("failed: ")


class ModelRecord(Record):
    """Model that the cells of one pipeline attack.

    Attributes:
        name, pipeline, training_state: as in `Cell`.
        parameters: number of parameters. sent_parameters: of them those that a client trains and sends; None
            for all. training_steps: steps of training on public clips.
        weights_sha256: digest of the weights.
        train_accuracy, held_out_accuracy: accuracy on public and on attacked clips; None where unknown.
        chance: accuracy of guessing.
        extractor_accuracy: held-out accuracy of the extractor; None where it was not trained here.
        segments, features: shape of the feature matrices; None in the raw pipeline.
        notes: what was done to a model from outside to run it, a sentence each.
    """

    name: str
    pipeline: str
    training_state: str
    parameters: int
    training_steps: int
    weights_sha256: str
    train_accuracy: Finite | None
    held_out_accuracy: Finite | None
    chance: Finite
    extractor_accuracy: Finite | None = None
    segments: int | None = None
    features: int | None = None
    sent_parameters: int | None = None
    notes: tuple[str, ...] = ()


class DataRecord(Record):
    """Data of a run."""

    name: str
    clips: int
    public_clips: int
    public_source: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str


class EnvironmentRecord(Record):
    """Versions and machine of a run. ``vleak`` and ``torch`` must agree for a run to be resumed."""

    vleak: str
    torch: str
    python: str
    platform: str
    extension: str
    device: str


class RunHeader(Record):
    """Part of a run that is known before its first cell, and that a resumed run must share.

    ``not_served``: by name and settings the defenses of ``all`` that these clients cannot use, and why.
    """

    environment: EnvironmentRecord
    settings: SettingsRecord
    data: DataRecord
    models: tuple[ModelRecord, ...]
    not_served: dict[str, str] = Field(default_factory=dict)


class RunRecord(RunHeader):
    """Whole content of results.json.

    Attributes:
        schema_version: version of these records.
        planned_cells: cells of the whole run; None where the journal alone is left, which does not say.
        cells: the finished cells, in the order of the plan.
        utility: of the defenses, where it was asked for.
        audits: of the defenses that claim an epsilon.
    """

    schema_version: int = SCHEMA_VERSION
    planned_cells: int | None = Field(ge=0)
    cells: tuple[Cell, ...]
    utility: tuple[UtilityRecord, ...] = ()
    audits: tuple[AuditRecord, ...] = ()

    @field_validator("schema_version")
    @classmethod
    def _current(cls, version: int) -> int:
        if version != SCHEMA_VERSION:
            raise ValueError(f"expected schema version {SCHEMA_VERSION}")
        return version

    @field_validator("cells")
    @classmethod
    def _distinct(cls, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
        counts = Counter(cell.id for cell in cells)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ValueError(f"expected one cell of each id, got {twice!r} twice")
        return cells

    def content(self) -> dict[str, object]:
        """Content of results.json as JSON values, the schema version first."""
        return {"schema_version": self.schema_version} | self.model_dump(mode="json")
