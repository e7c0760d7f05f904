"""Conditions, samples and records that a pipeline is made of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleak.certificates import replacement_epsilon
from vleak.data import PublicFrom
from vleak.defenses import Defense
from vleak.federated import Privacy
from vleak.models import accuracy, training_steps
from vleak.pipelines.scoring import finite
from vleak.results.records import DefenseRecord, ModelRecord
from vleak.seeds import derive_seed

__all__ = ["Conditions", "Progress", "Samples", "Stop", "defense_record", "model_record"]

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, cells finished, cells in all)."""
Stop = Callable[[], bool]
"""Asked between iterations; True ends the work."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions under which all cells of a pipeline run.

    Attributes:
        device: device of models and attacks.
        training_state: a key of `vleak.models.TRAINING_STATES`, or "given".
        labels_granted: whether the attack is told the labels.
        trainable: patterns of the parameters that clients train and send; "*" for all.
        seed: seed of the run.
        draw: which draw of the randomness of its cells it is.
    """

    device: torch.device
    training_state: str = "untrained"
    labels_granted: bool = False
    trainable: str = "*"
    seed: int = 0
    draw: int = 0

    @property
    def cell_seed(self) -> int:
        """Seed of what differs from draw to draw: the randomness of clients and attacks."""
        return derive_seed(self.seed, "draw", self.draw) if self.draw else self.seed


@dataclass(frozen=True)
class Samples:
    """Samples of a training task, as its loss takes them.

    Attributes:
        private: (N, *shape), what the clients hold.
        labels: (N,) int64.
        public: (M, *shape), what everybody holds.
        public_labels: (M,) int64.
        classes: number of classes. labels_drawn: whether labels were drawn at random.
        public_from: as of `vleak.data.ClipSet`.
    """

    private: Tensor
    labels: Tensor
    public: Tensor
    public_labels: Tensor
    classes: int
    labels_drawn: bool = False
    public_from: PublicFrom | None = None


def model_record(
    model: nn.Module,
    samples: Samples,
    conditions: Conditions,
    *,
    name: str,
    pipeline: str,
    extractor_accuracy: float | None = None,
    matrix: tuple[int | None, int | None] = (None, None),
) -> ModelRecord:
    """Record of a model after its training; the model is on the CPU.

    Args:
        model: trained.
        samples: its samples.
        conditions: of the pipeline.
        name: as records have it.
        pipeline: kind of the pipeline.
        extractor_accuracy: held-out accuracy of the extractor before it.
        matrix: segments and features of its input; None for frames.
    """
    digest, drawn = hashlib.sha256(), samples.labels_drawn
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    if matrix != (None, None):  # another extractor makes other features of equal clips
        digest.update(samples.private.numpy().tobytes() + samples.public.numpy().tobytes())
    everything = sum(p.numel() for p in model.parameters())
    sent = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ModelRecord(
        name=name,
        pipeline=pipeline,
        training_state=conditions.training_state,
        parameters=everything,
        sent_parameters=None if sent == everything else sent,
        training_steps=training_steps(conditions.training_state),
        weights_sha256=digest.hexdigest(),
        train_accuracy=None if drawn else accuracy(model, samples.public, samples.public_labels),
        held_out_accuracy=None if drawn else accuracy(model, samples.private, samples.labels),
        chance=1 / samples.classes,
        extractor_accuracy=extractor_accuracy,
        segments=matrix[0],
        features=matrix[1],
    )


def _replaced(privacy: Privacy) -> float | None:
    """Epsilon of a unit that is replaced by another, of a certificate for one that is replaced by zero."""
    if privacy.adjacency != "zero out" or not 0 < privacy.noise_multiplier < math.inf:
        return None
    return finite(replacement_epsilon(privacy.noise_multiplier, privacy.delta))


def defense_record(defense: Defense, privacy: Privacy | None) -> DefenseRecord:
    """Record of a defense with what it proves; ``privacy`` is None where it proves nothing."""
    record = DefenseRecord(name=defense.name, label=defense.label, settings={**defense.settings()})
    if privacy is None:
        return record
    return record.model_copy(
        update={
            "epsilon": finite(privacy.epsilon),
            "replaced_epsilon": _replaced(privacy),
            "delta": privacy.delta,
            "unit": privacy.unit,
            "adjacency": privacy.adjacency,
            "training_epsilon": finite(privacy.training_epsilon),
        }
    )
