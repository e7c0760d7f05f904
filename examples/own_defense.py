"""A defense of your own in twenty lines, attacked by an attacker who knows it."""

# --8<-- [start:defense]
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import vleak
from vleak.federated import Channel, KeepsEntries, Message, Update


@dataclass(frozen=True, kw_only=True)
class RandomMask(vleak.Defense):
    """Random part of the gradient: all other entries are sent as zero."""

    name = "random_mask"
    keep: float = 0.1

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        sent = {k: g * (torch.rand(g.shape, generator=generator) < self.keep) for k, g in gradient.items()}
        return Message(sent, 8 * sum(int(t.count_nonzero()) for t in sent.values()))  # value and place

    def channel(self, update: Update) -> Channel:
        kept = {name: tensor != 0 for name, tensor in update.tensors.items()}
        return Channel(masks=kept, key=("random_mask", self.keep))

    def claims(self) -> list[KeepsEntries]:
        return [KeepsEntries(fraction=self.keep, which="random")]

    @classmethod
    def sweep(cls) -> list[RandomMask]:
        return [cls(keep=0.5), cls(keep=0.1), cls(keep=0.01)]


# --8<-- [end:defense]

if __name__ == "__main__":
    # --8<-- [start:run]
    run = vleak.evaluate(
        defenses=[RandomMask(keep=0.1)],
        attacks=["matching", "matching_blind"],  # one attacker knows the channel, the other does not
        clips=3,
        frames=4,
        size=16,
        iterations=40,
    )
    for row in run.rows:
        if not row.baseline:
            gain = row.psnr_gain_db.mean
            print(f"{row.defense}, {row.attack}: {gain:+.1f} dB, defense known by: {row.defense_knowledge}")
    # --8<-- [end:run]
