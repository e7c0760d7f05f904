"""Rehearsal: the attacker plays the client on public clips, and keeps what it would send."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor, nn

from vleak.attacks.base import Hooks
from vleak.attacks.cache import Cache
from vleak.attacks.knowledge import Simulate
from vleak.attacks.learned.augment import augment
from vleak.federated import LOSSES, Channel, Client, Update
from vleak.federated.gradients import mean_gradient, per_clip_gradients
from vleak.seeds import generator as seeded
from vleak.seeds import tensor_digest

__all__ = ["Rehearsal", "Sender", "StoppedError", "folded", "rehearse", "stop_or_report"]

WIDTH = 2**17
"""Entries of an update that are kept apart; a longer one is folded with random signs (a count sketch)."""
_CLIPS_AT_ONCE, _ENTRIES_AT_ONCE = 8, 2**26
"""Clips whose gradients are computed together, and entries that these have at most."""


class StoppedError(Exception):
    """Signal that the caller wants no more; what was begun is not kept."""


def stop_or_report(hooks: Hooks, done: int) -> None:
    """Report progress.

    Raises:
        StoppedError: the caller wants no more.
    """
    if hooks.stopped():
        raise StoppedError
    hooks.report(done)


@dataclass(frozen=True)
class Sender:
    """A client with some clips under the private labels: what it sends, in truth and on average.

    Attributes:
        model: in the client's mode.
        loss: its name, a key of `vleak.federated.LOSSES`.
        mode: "eval" or "train".
        labels: (B,) int64.
        channel: of the defense; that of an undefended update where none is known.
        simulate: the client's own code, or None where only an undefended client can be played.
    """

    model: nn.Module
    loss: str
    mode: Literal["eval", "train"]
    labels: Tensor
    channel: Channel
    simulate: Simulate | None

    def sent(self, clips: Tensor, source: torch.Generator) -> Update:
        """Return a message for a batch (B, ...), the defense's noise included."""
        if self.simulate is not None:
            return self.simulate(clips, self.labels, source)
        return Client(self.model, self.loss, mode=self.mode).update(clips, self.labels, source)

    def expected(self, batches: Tensor) -> dict[str, Tensor]:
        """Return (n, *parameter shape) by name: of batches (n, B, ...), the messages without noise."""
        weight = next(self.model.parameters())
        loss, labels, batches = LOSSES[self.loss], self.labels.to(weight.device), batches.to(weight)
        if self.mode == "train":  # clips of a batch may share statistics
            singles = [mean_gradient(self.model, loss, batch, labels) for batch in batches]
            samples = {name: torch.stack([s[name] for s in singles])[:, None] for name in singles[0]}
        else:
            flat = per_clip_gradients(self.model, loss, batches.flatten(0, 1), labels.repeat(len(batches)))
            samples = {name: t.view(*batches.shape[:2], *t.shape[1:]) for name, t in flat.items()}
        return self.channel.expected(samples)

    def key(self, clips: Tensor) -> Hashable:
        """Return what tells the defense from others: its channel's key, else a digest of one message."""
        if self.channel.key or self.simulate is None:
            return self.channel.key, self.simulate is None
        return tensor_digest(*self.sent(clips, seeded("inverter", "key")).tensors.values())


@dataclass(frozen=True)
class Rehearsal:
    """Batches of public clips, and what their sender would send without noise.

    Attributes:
        clips: (N, C, T, H, W), every version of every public clip, those as they are first.
        slots: (N, B), which clip stands where in each batch; the first slot counts up. In the first batches,
            one a public clip, all stand as they are, each once in every slot.
        sources: (N, B), from which public clip it was made.
        messages: (N, width) bfloat16 a tensor, of norm as it was.
        entries: P, the length of an update.
    """

    clips: Tensor
    slots: Tensor
    sources: Tensor
    messages: list[Tensor]
    entries: int

    @cached_property
    def products(self) -> Tensor:
        """Inner products (tensor, N, N) of the messages with each other, tensor by tensor.

        Every defense with the same expected messages is fitted from them.
        """
        return torch.stack([wide @ wide.T for wide in (m.float() for m in self.messages)])

    @property
    def public(self) -> int:
        """M, how many public clips there are."""
        return int(self.sources.max()) + 1

    def inner(self, queries: list[Tensor]) -> Tensor:
        """Return the inner products (tensor, N, queries) of messages with queries (queries, width)."""
        return torch.stack([
            torch.cat([part.float() @ q.T for part in torch.split(m, 64)])
            for m, q in zip(self.messages, queries, strict=True)
        ])  # fmt: skip


def rehearse(sender: Sender, public: Tensor, copies: int, hooks: Hooks) -> Rehearsal:
    """Return what a sender would send of public clips and altered versions of them.

    Args:
        sender: the client.
        public: (M, C, T, H, W) in [0, 1].
        copies: versions of every clip, at least 1.
        hooks: asked before every few batches.

    Raises:
        StoppedError: the caller wants no more.
    """
    source = seeded("inverter", copies, len(public))
    clips, batch = augment(public, copies, source), len(sender.labels)
    slots = _slots(len(public), len(clips), batch, source)
    entries = sum(p.numel() for p in sender.model.parameters())
    parts: list[list[Tensor]] = []
    at_once = max(1, min(_CLIPS_AT_ONCE, _ENTRIES_AT_ONCE // entries) // batch)
    for rows in torch.split(torch.arange(len(clips)), at_once):
        stop_or_report(hooks, int(rows[0]))
        messages = folded(sender.expected(clips[slots[rows]]), entries)
        parts.append([part.bfloat16() for part in messages])
    return Rehearsal(
        clips, slots, slots % len(public), [torch.cat(part) for part in zip(*parts, strict=True)], entries
    )


def _slots(public: int, clips: int, batch: int, source: torch.Generator) -> Tensor:
    """Draw which clip stands where in each batch, (clips, batch)."""
    others = [
        torch.cat([
            torch.randperm(public, generator=source),
            public + torch.randperm(clips - public, generator=source),
        ])
        for _ in range(batch - 1)
    ]  # fmt: skip
    return torch.stack([torch.arange(clips), *others], 1)


def folded(tensors: Mapping[str, Tensor], entries: int) -> list[Tensor]:
    """Return rows (n, width) of every tensor (n, ...), short enough to be kept; inner products survive.

    Args:
        tensors: by name; the name decides the signs.
        entries: P, the length of an update.
    """
    parts = []
    for name, tensor in tensors.items():
        rows = tensor.reshape(len(tensor), -1)
        width = max(1, min(rows.shape[1], rows.shape[1] * WIDTH // entries))
        if width < rows.shape[1]:
            count = rows.shape[1]
            signs = _signs.get((name, count), partial(_draw_signs, name, count))
            rows = _sum_of_blocks(rows, signs, width)
        parts.append(rows)
    return parts


def _sum_of_blocks(rows: Tensor, signs: Tensor, width: int) -> Tensor:
    """Return (n, width), the sum of the blocks of rows (n, count), each times its signs (count,)."""
    total = rows.new_zeros(len(rows), width)
    for block, sign in zip(torch.split(rows, width, 1), torch.split(signs, width), strict=True):
        total[:, : len(sign)].addcmul_(block, sign.to(rows.dtype))
    return total


def _draw_signs(name: str, count: int) -> Tensor:
    """Draw (count,) int8, 1 or -1."""
    return (torch.randint(2, (count,), generator=seeded("fold", name)) * 2 - 1).to(torch.int8)


_signs: Cache[Tensor] = Cache(256)
"""By name and length of a tensor; drawing them takes longer than folding."""
