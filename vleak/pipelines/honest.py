"""Undefended updates: the reference of what a defense changes, and the hypotheses of linkage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vleak.federated import Client, Update
from vleak.results.records import UpdateRecord
from vleak.seeds import generator

__all__ = ["HonestUpdates", "compare"]

_HYPOTHESIS_BYTES = 2**31
"""Updates under all labels are kept up to this size; beyond it linkage is not measured."""


class HonestUpdates:
    """Undefended updates of all clips.

    Attributes:
        updates: the update of every clip under its own label.
        hypotheses: for every clip its update under every label; empty where they would not fit in memory.
    """

    def __init__(self, client: Client, samples: Tensor, labels: Tensor, kinds: int, seed: int) -> None:
        """Compute the updates.

        Args:
            client: a client without a defense.
            samples: (N, *shape), the private samples.
            labels: (N,) int64, as the loss sees them.
            kinds: number of labels that a hypothesis may have.
            seed: seed of the run.
        """
        self.updates = _updates(client, samples, labels, seed)
        self.hypotheses: list[list[Update]] = []
        size = 4 * sum(p.numel() for p in client.model.parameters()) * len(samples) * kinds
        if size <= _HYPOTHESIS_BYTES:
            by_label = [
                _updates(client, samples, torch.full_like(labels, label), seed) for label in range(kinds)
            ]
            self.hypotheses = [list(updates) for updates in zip(*by_label, strict=True)]

    def candidates(self, clips: Sequence[int], label: int | None) -> list[list[Update]]:
        """Hypotheses of some clips, of one label if it is known; empty where linkage is not measured."""
        if not self.hypotheses:
            return []
        chosen = [self.hypotheses[clip] for clip in clips]
        return chosen if label is None else [[updates[label]] for updates in chosen]


def compare(update: Update, undefended: Update) -> UpdateRecord:
    """Size of an update, its cosine to the undefended one, and the share of entries that changed."""
    sent, honest = _flat(update), _flat(undefended)
    norms = float(sent.norm() * honest.norm())
    return UpdateRecord(
        bytes=update.wire_bytes,
        cosine_to_undefended=float(sent @ honest) / norms if norms else 0.0,
        changed_fraction=float((sent != honest).double().mean()),
    )


def _updates(client: Client, samples: Tensor, labels: Tensor, seed: int) -> list[Update]:
    pairs = zip(samples, labels, strict=True)
    return [client.update(clip[None], label[None], generator(seed, "honest")) for clip, label in pairs]


def _flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])
