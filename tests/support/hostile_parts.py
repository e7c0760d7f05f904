"""Plug-ins that end the program, write to stdout and close it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from vleak import Attack, Defense, Observation, Reconstruction
from vleak.federated import Loss
from vleak.metrics import Metric


def ends() -> dict[str, Callable[[], NoReturn]]:
    """What a plug-in may do in place of an answer."""

    def throw(kind: type[BaseException]) -> Callable[[], NoReturn]:
        def call() -> NoReturn:
            raise kind("enough")

        return call

    return {kind.__name__: throw(kind) for kind in (SystemExit, GeneratorExit, KeyboardInterrupt)}


def _end(how: str) -> None:
    if how in ends():
        ends()[how]()
    if how == "os._exit":
        import os

        os._exit(0)
    print("hello from a plug-in")
    if how == "close":
        sys.stdout.close()


@dataclass(frozen=True, kw_only=True)
class Leaver(Defense):
    """Defense that ends in place of sending."""

    name: ClassVar[str] = "leaver"
    how: str = "print"

    def aggregate(
        self, model: nn.Module, loss: Loss, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """End, or print and send."""
        _end(self.how)
        return super().aggregate(model, loss, clips, labels, generator)


class Quitter(Attack):
    """Attack that ends in place of an answer."""

    name: ClassVar[str] = "quitter"
    takes: ClassVar[frozenset[str]] = frozenset({"frames"})

    def __init__(self, *, how: str = "print") -> None:
        """Take how it ends."""
        self.how = how

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: object) -> Reconstruction:
        """End, or print and answer in grey."""
        _end(self.how)
        known = observation.knowledge
        clips = torch.full((known.batch_size, *known.clip_shape), 0.5)
        return Reconstruction(clips=clips, labels=torch.zeros(known.batch_size, dtype=torch.int64))


class Judge(Metric):
    """Metric that ends in place of a score."""

    name: ClassVar[str] = "judge"

    def __init__(self, *, how: str = "print") -> None:
        """Take how it ends."""
        self.how = how

    def score(self, reconstruction: Tensor, truth: Tensor) -> float:
        """End, or print and score."""
        _end(self.how)
        return 1.0
