"""Attacks that only look, and the search of an observation for what must not be in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks import Attack, Hooks, Observation, Reconstruction


class Shared(list[Observation]):
    """List that is its own copy: an evaluation runs a copy of an attack in every cell."""

    def __deepcopy__(self, memo: object) -> Shared:
        return self


class Onlooker(Attack):
    """Answers every clip with one grey value; subclasses look at the observation."""

    name: ClassVar[str] = "onlooker"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})

    def look(self, observation: Observation) -> Reconstruction:
        """Return the answer."""
        knowledge = observation.knowledge
        labels = torch.zeros(knowledge.batch_size, dtype=torch.long)
        return Reconstruction(clips=torch.full(knowledge.batch_shape, 0.25), labels=labels)

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        return self.look(observation)


class Spy(Onlooker):
    """Keeps every observation, in a list that copies of it share."""

    name: ClassVar[str] = "spy"

    def __init__(self) -> None:
        self.seen = Shared()

    def look(self, observation: Observation) -> Reconstruction:
        self.seen.append(observation)
        return super().look(observation)


def tensors(thing: object, visited: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from an object through its attributes and items."""
    visited = set() if visited is None else visited
    if id(thing) in visited or isinstance(thing, type):
        return
    visited.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        yield from tensors(thing.grad, visited)
    inner = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    inner += [getattr(thing, "__self__", None), getattr(thing, "__func__", None)]
    inner += [held.cell_contents for held in getattr(thing, "__closure__", None) or ()]
    inner += list(thing.values()) if isinstance(thing, dict) else []
    inner += list(thing) if isinstance(thing, list | tuple | set) else []
    for part in inner:
        yield from tensors(part, visited)


def holds(tensor: Tensor, clip: Tensor) -> bool:
    """Tell whether one of the clips in a tensor is this clip, in whatever axes."""
    if not clip.numel() or tensor.numel() % clip.numel():
        return False
    rows = tensor.detach().cpu().float().reshape(-1, clip.numel())
    return any(torch.equal(row, clip.flatten()) for row in rows)
