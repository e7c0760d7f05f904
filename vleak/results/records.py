"""Typed records of a run: what results.json holds, validated on reading and on writing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SCHEMA_VERSION = 2
"""Version of the records; `vleak.results.migrations` reads older ones."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Setting = int | float | str | bool | None
"""Value of one setting of a defense, attack, model or metric."""


class Record(BaseModel):
    """Base of all records: immutable, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="null")


class DefenseRecord(Record):
    """Defense of a cell, and what it proves about one update.

    Attributes:
        name: name in the registry, or the class name of a defense from outside.
        label: short name with the strength, for tables.
        settings: hyper-parameters by name.
        epsilon: privacy loss of one release in nats, None without a guarantee.
        delta: failure probability of the guarantee.
        unit: what is protected, such as "one clip".
        adjacency: how neighbouring batches differ.
        training_epsilon: privacy loss of the whole training run.
    """

    name: str
    label: str
    settings: dict[str, Setting] = {}
    epsilon: Finite | None = None
    delta: Finite | None = None
    unit: str | None = None
    adjacency: str | None = None
    training_epsilon: Finite | None = None


class AttackRecord(Record):
    """Attack of a cell, and how it ran.

    Attributes:
        name: name in the registry, or the class name of an attack from outside.
        baseline: whether it is an attacker who never sees the update.
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
    """

    name: str
    baseline: bool = False
    adaptive: bool = False
    defense_knowledge: Literal["channel", "simulated", "none"] = "none"
    settings: dict[str, Setting] = {}
    iterations: int = Field(0, ge=0)
    restarts: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0)
    engine: str = "none"
    objective: Finite | None = None
    nan_at: int | None = None


class KnowledgeRecord(Record):
    """What the threat model granted the attacker of a cell.

    Attributes:
        labels: "inferred" by the attack or "granted" to it.
        reference_frames: frames of the scene that the attacker holds.
        batch_size: clips behind the update.
        defense: whether the attacker knows the defense.
        public_clips: public clips that the attacker holds.
    """

    labels: Literal["inferred", "granted"] = "inferred"
    reference_frames: int = Field(0, ge=0)
    batch_size: int = Field(1, ge=1)
    defense: bool = True
    public_clips: int = Field(0, ge=0)


class BaselineScore(Record):
    """Score of one baseline on one clip; None where it was not measured."""

    psnr_db: Finite | None = None
    ssim: Finite | None = None
    cosine: Finite | None = None


class OrderScores(Record):
    """Fidelity in the order of frames, and after matching frames one to one.

    Attributes:
        psnr_db: PSNR in the order given.
        matched_psnr_db: PSNR after the best one-to-one matching of frames.
        frames_in_place: share of frames that match their own position.
    """

    psnr_db: Finite
    matched_psnr_db: Finite
    frames_in_place: Finite


class SegmentScores(Record):
    """Recovery of a feature matrix, segment by segment.

    Attributes:
        segments: segments of the matrix.
        carrying: segments that the loss lets into the gradient.
        recovered: segments with a cosine above 0.99.
        exact: segments with a relative error below 0.01.
        baseline_exact: the same of the best baseline.
        cosine: median cosine over segments.
        relative_error: median relative error over segments.
        in_order: share of segments in their own position; None where the attack claims no order.
        cosine_gain: cosine over the best baseline.
        identified, rank, candidates: as in `Scores`, from the features.
        baselines: scores of the baselines by name.
        best_baseline: the baseline with the highest cosine.
    """

    segments: int
    carrying: int
    recovered: int
    exact: int
    baseline_exact: int
    cosine: Finite | None
    relative_error: Finite | None
    in_order: Finite | None
    cosine_gain: Finite | None
    identified: bool
    rank: int
    candidates: int
    baselines: dict[str, BaselineScore] = {}
    best_baseline: str | None = None


class Scores(Record):
    """Scores of one reconstruction beside those of the baselines.

    Attributes:
        psnr_db, ssim: fidelity; None where there are no frames.
        psnr_gain_db, ssim_gain: gain over the best baseline of this clip.
        motion_psnr_db, motion_psnr_gain_db, motion_ssim: the same where something moves; None where
            nothing does.
        residual_correlation: correlation with the truth after subtracting the prior.
        best_baseline: the baseline with the highest PSNR.
        baselines: scores of the baselines by name.
        order: scores that ignore the order of frames.
        segments: recovery of features; None in the raw pipeline.
        identified: whether the reconstruction is nearest to its own truth among the candidates.
        rank: rank of the truth, 1 is best. candidates: clips it was told from.
        baseline_identified: whether reference frames alone identify the clip; None without reference frames.
        label_correct: whether the label was right; None where there is none to guess.
        linked: whether the update alone points at the clip among the candidates; None where not asked.
        link_rank: rank of the clip in that test.
        metrics: scores of further metrics by name, from plug-ins.
    """

    psnr_db: Finite | None = None
    psnr_gain_db: Finite | None = None
    ssim: Finite | None = None
    ssim_gain: Finite | None = None
    motion_psnr_db: Finite | None = None
    motion_psnr_gain_db: Finite | None = None
    motion_ssim: Finite | None = None
    residual_correlation: Finite | None = None
    best_baseline: str | None = None
    baselines: dict[str, BaselineScore] = {}
    order: OrderScores | None = None
    segments: SegmentScores | None = None
    identified: bool = False
    rank: int | None = None
    candidates: int | None = None
    baseline_identified: bool | None = None
    label_correct: bool | None = None
    linked: bool | None = None
    link_rank: int | None = None
    metrics: dict[str, Finite | None] = {}


class EnhancedScores(Record):
    """Scores at twice the resolution, before or after enhancement."""

    psnr_db: Finite
    psnr_gain_db: Finite
    ssim: Finite
    motion_psnr_db: Finite | None
    identified: bool
    rank: int
    detail_rms: Finite
    invented: Finite | None


class EnhancementRecord(Record):
    """Enhancement of one reconstruction.

    Attributes:
        method: name of the enhancer.
        noise: standard deviation of the noise estimated in the clip.
        steps: operations in the order in which they were applied.
        before, after: scores of the interpolated and of the enhanced clip.
        psnr_change_db, psnr_gain_change_db: differences of those.
        identification_moved: "gained", "lost" or "none".
    """

    method: str
    noise: Finite
    steps: tuple[str, ...]
    before: EnhancedScores
    after: EnhancedScores
    psnr_change_db: Finite
    psnr_gain_change_db: Finite
    identification_moved: Literal["gained", "lost", "none"]


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
        order_identifiable: whether the update depends on the order of frames at all.
        scores: None where the cell failed.
        enhanced: None without enhancement.
        certificate: None without a guarantee.
        flags: health flags of the attack.
        status: "ok", or "failed: " and the reason.
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
    order_identifiable: bool = True
    scores: Scores | None = None
    enhanced: EnhancementRecord | None = None
    certificate: CertificateRecord | None = None
    update: UpdateRecord | None = None
    flags: tuple[str, ...] = ()
    status: str = "ok"
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
        parameters: number of parameters. training_steps: steps of training on public clips.
        weights_sha256: digest of the weights.
        train_accuracy, held_out_accuracy: accuracy on public and on attacked clips; None where unknown.
        chance: accuracy of guessing.
        extractor_accuracy: held-out accuracy of the extractor; None where it was not trained here.
        segments, features: shape of the feature matrices; None in the raw pipeline.
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


class SettingsRecord(Record):
    """Settings of a run, resolved: two runs with equal settings give equal scores."""

    data: str
    pipeline: str
    model: str
    extractor: str
    head: str
    loss: str
    training_state: str
    defenses: tuple[str, ...]
    attacks: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    clips: int | None
    frames: int
    size: int
    stride: int
    segments: int
    reference_frames: tuple[int, ...]
    enhance: str
    restarts: int
    iterations: int
    labels: Literal["inferred", "granted"]
    seed: int
    device: str
    engine: str


class RunHeader(Record):
    """Part of a run that is known before its first cell, and that a resumed run must share."""

    environment: EnvironmentRecord
    settings: SettingsRecord
    data: DataRecord
    models: tuple[ModelRecord, ...]


class RunRecord(RunHeader):
    """Whole content of results.json.

    Attributes:
        schema_version: version of these records.
        planned_cells: cells of the whole run; None where the journal alone is left, which does not say.
        cells: the finished cells, in the order of the plan.
    """

    schema_version: int = SCHEMA_VERSION
    planned_cells: int | None
    cells: tuple[Cell, ...]

    @field_validator("schema_version")
    @classmethod
    def _current(cls, version: int) -> int:
        if version != SCHEMA_VERSION:
            raise ValueError(f"expected schema version {SCHEMA_VERSION}")
        return version
