"""Small audits: a model, a client's update on a synthetic clip, and what an audit is given."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import vleak
from vleak.federated import Client, LocalTraining, Update
from vleak.seeds import generator
from vleak.update_audit import Audit, audit

SHAPE = (3, 4, 16, 16)
LOCAL = LocalTraining(steps=5, learning_rate=0.05)
QUICK: dict[str, Any] = {
    "input_shape": SHAPE, "attacks": ("matching",), "defenses": (), "iterations": 10, "starts": 1,
}  # fmt: skip
"""Arguments of an audit that takes a second or two: what is looked at is not how well it rebuilds."""


@cache
def clips() -> vleak.ClipSet:
    """Twelve clips under attack; settings of audits are chosen on those of seed 1000, never on these."""
    return vleak.load_clips("synthetic", clips=12, frames=4, size=16, seed=7, public=12)


def model(seed: int = 0) -> nn.Module:
    return vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=seed)


class WithNorm(nn.Module):
    """A classifier with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 4, 3, stride=2, padding=1), nn.BatchNorm3d(4)
        self.head = nn.Linear(4 * 2 * 8 * 8, 6)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(clips))).flatten(1))


def with_norm() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return WithNorm().eval()


def sent(net: nn.Module, clip: int = 0, **how: Any) -> Update:
    """Update of a client on one clip."""
    client = Client(net, **how)
    return client.update(clips().clips[clip : clip + 1], clips().labels[clip : clip + 1], generator(clip))


def outcome(made: Audit, name: str) -> str:
    """Outcome of a check."""
    return next(check.outcome for check in made.record.consistency if check.name == name)


def compared(net: nn.Module, update: Any, **changes: Any) -> Audit:
    """An audit that attacks nothing."""
    return quick(net, update, attacks=(), **changes)


def quick(net: nn.Module, update: Any, **changes: Any) -> Audit:
    return audit(net, update, **{**QUICK, **changes})
