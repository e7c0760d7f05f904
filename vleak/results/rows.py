"""Rows of a run's table: one for each defense and attack, over all clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vleak.results.audit import AuditRecord
from vleak.results.leads import NonAdaptive
from vleak.results.records import Cell, ClientRecord, KnowledgeRecord
from vleak.results.statistics import Interval, mean_interval

__all__ = [
    "Caveat",
    "Ceilings",
    "Figure",
    "FigureName",
    "Row",
    "RowKey",
    "Segments",
    "SettingKey",
    "Verdict",
    "row_key",
    "setting_key",
]

Verdict = Literal[
    "leaks",
    "linkable_picture_unclear",
    "linkable_no_picture",
    "linkable_below_prior",
    "unclear",
    "too_few_clips",
    "nothing_found",
    "below_prior",
    "no_result",
    "baseline",
]
"""What a row shows, most leakage first; what judges nothing comes behind what does.

``below_prior``: the answers are worse than the best baseline's, so that the attack is broken here and its
failure says nothing of the defense; ``linkable_below_prior``: the same, where the update alone still points
at its clip.
"""

Caveat = Literal[
    "not_compared", "fails_undefended", "not_adaptive", "behind_non_adaptive", "flagged", "failed"
]
"""What weakens a verdict: no run without defense to compare with; an attack that fails even without defense;
an attack that does not use what is known of the defense; one that gets less than the same attack does
without that knowledge; cells with health flags; cells that failed."""

FigureName = Literal["recognised", "linked", "told"]
"""Share of clips that the answer picks out, or the update alone; share of messages, over the noise, by which
who is told the labels of all candidates picks out the clip."""

NO_INTERVAL = mean_interval([])


class RowKey(NamedTuple):
    """Fields that the cells of one row share.

    Whether the attack was adaptive is not among them: a cell that failed before its attack ran cannot know.

    Attributes:
        pipeline, model, training_state: as in `Cell`.
        label: label of the defense; defense: its name and settings, as a label leaves settings out.
        attack: name and settings of the attack.
        labels, reference_frames, batch_size: granted knowledge, as in `KnowledgeRecord`.
        client: `Cell.client`.
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


def row_key(cell: Cell) -> RowKey:
    """Key of the row that a cell belongs to."""
    granted = cell.knowledge
    return RowKey(
        cell.pipeline,
        cell.model,
        cell.training_state,
        cell.defense.label,
        cell.defense.text,
        cell.attack.text,
        granted.labels,
        granted.reference_frames,
        granted.batch_size,
        cell.client,
    )


class SettingKey(NamedTuple):
    """Fields that rows share whose attacks alone differ; as in `RowKey`."""

    pipeline: str
    model: str
    training_state: str
    label: str
    defense: str
    labels: str
    reference_frames: int
    batch_size: int
    client: ClientRecord


def setting_key(key: RowKey) -> SettingKey:
    """Key of the setting that a row belongs to."""
    return SettingKey(**{name: getattr(key, name) for name in SettingKey._fields})


@dataclass(frozen=True)
class Segments:
    """Recovery of feature matrices, over all clips of a row.

    Attributes:
        recovered: segments with a cosine above 0.99, of those that carry gradient.
        exact: segments with a relative error below 0.01; baseline_exact: the same of the best baseline, which
            is no leak.
        carrying: segments that the loss lets into the gradient; total: all of them.
        cosine, relative_error: means over clips of their medians.
        in_order: mean share of segments in their own position; None where the attack claims no order.
    """

    recovered: int
    exact: int
    baseline_exact: int
    carrying: int
    total: int
    cosine: float | None
    relative_error: float | None
    in_order: float | None


@dataclass(frozen=True)
class Figure:
    """Measured share between what guessing gives and what is proven.

    Attributes:
        name: what is measured.
        successes, trials: clips, or draws of the noise.
        baseline: share by guessing; None where there is nothing to guess.
        ceiling: share that certificates, or the bits of the message, allow any attacker, a mean over the
            candidates; None where neither says anything.
        tail: probability of so many successes or more where the ceiling is true; None without one.
        broken: whether that is less than an honest run has at the stated rate: certificate or code is wrong.
    """

    name: FigureName
    successes: int
    trials: int
    baseline: float | None
    ceiling: float | None
    tail: float | None = None
    broken: bool = False

    @property
    def share(self) -> float:
        """Measured share."""
        return self.successes / self.trials


@dataclass(frozen=True)
class Ceilings:
    """Ceilings beside the certificate, means over the clips of a row; None where they do not apply.

    Attributes:
        bits: that a message tells of its clip at most.
        fano: share of clips that so many bits allow any attacker to identify.
        no_prior_psnr_db: expected PSNR that the noise leaves to an attacker without prior (arXiv 2402.12861).
        unbiased_psnr_db: PSNR that it leaves to unbiased attackers, by the Jacobian (Cramér-Rao).
        van_trees_psnr_db: PSNR that it leaves to attackers whose prior is Gaussian, with independent numbers
            of the variance that the public clips have about their mean (``prior_variance``).
    """

    bits: float
    fano: float
    no_prior_psnr_db: float | None = None
    unbiased_psnr_db: float | None = None
    van_trees_psnr_db: float | None = None
    prior_variance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one attack on one defense, over all clips of a run.

    Attributes:
        key: what `row_key` gives for every cell of this row.
        pipeline: "raw" or "feature".
        model: name of the model.
        training_state: "untrained", "early", "late".
        defense: label such as "dp σ=0.1". Where a run holds several defenses of one label, with the settings
            that tell them apart: "qsgd 4 bit, bucket=64".
        undefended: whether there is no defense.
        attack: name of the attack, with settings that are not its defaults.
        methods: of an attack that chooses among others, those that gave the answers, the most frequent one
            first.
        baseline: whether the attack never sees the update.
        adaptive: whether the attack used what it knows of the defense in every scored cell.
        defense_knowledge: how it knew in the scored cells, one of them standing for all.
        knowledge: what the attacker was granted.
        client: settings of the client.
        batch_identified: mean number of clips of a batch that the reconstruction picked out; None for single
            clips.
        n: clips that were scored.
        failed: clips that were not; they are in no average.
        failures: distinct reasons for that.
        flagged: scored clips whose attack raised a health flag.
        flags: the distinct flags.
        epsilon: the privacy loss that the defense proves, None without one; delta belongs to it.
        replaced_epsilon: the same where a clip is replaced by another, and not by zero; None without one.
        psnr_db: mean PSNR.
        psnr_gain_db: gain over the best baseline of each clip.
        ssim: mean structural similarity.
        ssim_gain: its gain over the best baseline.
        motion_psnr_db: mean PSNR where something moves, None where nothing does.
        identified: clips that the reconstruction picked out among the candidates.
        identification: share of those, of clips that have others to be told from, with its exact interval.
        linked: clips for which an attacker who holds all candidates tells from the update alone which it was.
        linkage: share of those with its exact interval.
        candidates: how many clips it had to be told from, at most.
        guess: mean over the clips of batch size / candidates, as each answer of a batch is matched to the
            truth that it fits best; a clip's twins are not among its candidates.
        chance: what recognition has to beat: the guess; with reference frames the share of clips at which
            these alone point, where that is more.
        pooled: that the update does not depend on the order of frames or segments.
        segments: of a feature pipeline, recovery of the feature matrices; else None.
        enhanced: clips that were enhanced.
        enhanced_change_db: mean change of PSNR by enhancement, with its interval.
        enhanced_gain_db: gain over the baselines, enhanced alike.
        enhanced_identified: clips recognised in the enhanced reconstruction.
        link_chance: share of messages, over the noise, from which who is told all labels picks the clip; a
            mean over the scored clips; None where the noise is not Gaussian.
        bound: share that the certificates allow, a mean over the scored clips; None without a certificate.
        figures: what was measured between what guessing gives and what is proven, by
            `vleak.results.sandwich`.
        labels_correct: clips whose label was right.
        labels: clips for which a label was guessed or granted.
        bytes: mean bytes of an update on the wire.
        bytes_ratio: those over the bytes without defense.
        cosine: mean cosine of the update to the undefended one.
        seconds: mean time of the attack a clip.
        metrics: means of further metrics by name, from plug-ins.
        accuracy: share of held-out clips that the model has right after federated training under the defense;
            accuracy_change: that less the same without defense, over clips.
        ceilings: further ones; None in older runs.
        step_seconds: mean time of a client for one update in that training.
        audit: lower bounds on epsilon from what the defense sends; None where it was not audited.
        non_adaptive: the same attack without knowledge of the defense; None where it was not run.
        verdict: what the row shows.
        attacks: attacks that the run made in this setting, that is on this defense, client and knowledge. The
            verdicts of all of them together hold at 95 %: each is judged at 1 - 0.05 / ``judged_at_once``.
        judged_at_once: attacks of the setting times the seeds that are judged together.
        caveats: what weakens the verdict.
    """

    key: RowKey
    pipeline: str
    model: str
    training_state: str
    defense: str
    undefended: bool
    attack: str
    methods: tuple[str, ...]
    baseline: bool
    adaptive: bool
    defense_knowledge: Literal["channel", "simulated", "none"]
    knowledge: KnowledgeRecord
    client: ClientRecord
    n: int
    failed: int
    failures: tuple[str, ...]
    flagged: int
    flags: tuple[str, ...]
    epsilon: float | None
    delta: float | None
    psnr_db: float | None
    psnr_gain_db: Interval
    ssim: float | None
    ssim_gain: Interval
    motion_psnr_db: float | None
    identified: int
    identification: Interval
    linked: int
    linkage: Interval
    candidates: int | None
    guess: float | None
    chance: float | None
    link_chance: float | None
    bound: float | None
    labels_correct: int
    labels: int
    bytes: float | None
    bytes_ratio: float | None
    cosine: float | None
    seconds: float | None
    verdict: Verdict
    caveats: tuple[Caveat, ...] = ()
    pooled: bool = False
    segments: Segments | None = None
    enhanced: int = 0
    enhanced_change_db: Interval = NO_INTERVAL
    enhanced_gain_db: Interval = NO_INTERVAL
    enhanced_identified: int = 0
    metrics: dict[str, float]
    accuracy: Interval = NO_INTERVAL
    accuracy_change: Interval = NO_INTERVAL
    attacks: int = 1
    judged_at_once: int = 1
    batch_identified: float | None = None
    figures: tuple[Figure, ...] = ()
    ceilings: Ceilings | None = None
    audit: AuditRecord | None = None
    replaced_epsilon: float | None = None
    step_seconds: float | None = None

    @property
    def bound_broken(self) -> bool:
        """Whether a measured share is above what is proven: certificate or code is wrong."""
        return any(figure.broken for figure in self.figures)

    @property
    def refuted(self) -> bool:
        """Whether what the defense sends refutes the epsilon that it claims."""
        return self.audit is not None and self.audit.refuted

    non_adaptive: NonAdaptive | None = None

    @property
    def reference_frames(self) -> int:
        """Frames of the scene that the attacker holds."""
        return self.knowledge.reference_frames
