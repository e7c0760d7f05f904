"""Undefended updates: the reference of what a defense changes, and the hypotheses of linkage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from vleak.defenses import Defense
from vleak.federated import Client, Update
from vleak.pipelines.case import ClientSettings
from vleak.pipelines.conditions import Progress
from vleak.results.records import UpdateRecord
from vleak.seeds import generator

__all__ = ["HonestKey", "HonestUpdates", "KeptUpdates", "compare"]

HonestKey = tuple[ClientSettings, Defense | None]
"""Settings of a client, and the defense that extends its model; None where none does."""
_HYPOTHESIS_BYTES = 2**31
"""Updates under all labels are kept up to this size; beyond it linkage is not measured."""


class HonestUpdates:
    """Undefended updates of all clips.

    Attributes:
        updates: the update of every clip under its own label.
        hypotheses: for every clip its update under every label; empty where they would not fit in memory.
    """

    def __init__(
        self,
        client: Client,
        samples: Tensor,
        labels: Tensor,
        kinds: int,
        seed: int,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Compute the updates.

        Args:
            client: a client without a defense.
            samples: (N, *shape), the private samples.
            labels: (N,) int64, as the loss sees them.
            kinds: number of labels that a hypothesis may have.
            seed: seed of the run.
            progress: told how many updates are there.
        """
        counts = count()
        expected = len(samples) * (1 + kinds)

        def updates(labels: Tensor) -> list[Update]:
            made = []
            for clip, label in zip(samples, labels, strict=True):
                if progress is not None:
                    progress(f"computing updates, {next(counts)} of {expected}", 0, 0)
                made.append(client.update(clip[None], label[None], generator(seed, "honest")))
            return made

        self.updates = updates(labels)
        self.hypotheses: list[list[Update]] = []
        size = 4 * sum(p.numel() for p in client.model.parameters()) * len(samples) * kinds
        if size <= _HYPOTHESIS_BYTES:
            by_label = [updates(torch.full_like(labels, label)) for label in range(kinds)]
            self.hypotheses = [list(updates) for updates in zip(*by_label, strict=True)]

    def candidates(self, clips: Sequence[int], label: int | None) -> list[list[Update]]:
        """Hypotheses of some clips, of one label if it is known; empty where linkage is not measured."""
        if not self.hypotheses:
            return []
        chosen = [self.hypotheses[clip] for clip in clips]
        return chosen if label is None else [[updates[label]] for updates in chosen]


class KeptUpdates:
    """Undefended updates by the client that sends them; the last two are kept.

    Attributes:
        doing: what is being computed in a cell, where others wait for it; empty while nothing is.
    """

    def __init__(self, compute: Callable[[HonestKey, Progress], HonestUpdates]) -> None:
        """Keep what ``compute`` returns for a client."""
        self.doing = ""
        self._compute, self._kept = compute, dict[HonestKey, HonestUpdates]()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Everything but the lock, which belongs to the threads of one process."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take over what another process kept."""
        vars(self).update(state)
        self._lock = threading.Lock()

    def of(self, client: HonestKey, progress: Progress | None = None) -> HonestUpdates:
        """Return the updates of a client, computed where they are not kept.

        Args:
            client: its settings, and what extends its model.
            progress: told how many updates are there; None to say so in ``doing``.
        """
        with self._lock:
            if client not in self._kept:
                while len(self._kept) > 1:
                    self._kept.pop(next(iter(self._kept)))
                try:
                    self._kept[client] = self._compute(client, progress or self._say)
                finally:
                    self.doing = ""
            return self._kept[client]

    def _say(self, what: str, done: int, total: int) -> None:
        self.doing = what


def compare(update: Update, undefended: Update) -> UpdateRecord:
    """Size of an update, its cosine to the undefended one, and the share of entries that changed."""
    sent, honest = _flat(update), _flat(undefended)
    norms = float(sent.norm() * honest.norm())
    return UpdateRecord(
        bytes=update.wire_bytes,
        cosine_to_undefended=float(sent @ honest) / norms if norms else 0.0,
        changed_fraction=float((sent != honest).double().mean()),
    )


def _flat(update: Update) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in update.tensors.values()])
