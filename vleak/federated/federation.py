"""Federated training in simulation: clients with clips of their own behind a defense, and one server."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vleak.errors import CapabilityError
from vleak.federated.client import Client
from vleak.federated.trained import trained_part
from vleak.federated.update import Update

__all__ = ["Federation", "Training", "train_federation"]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Setting of federated training.

    Attributes:
        rounds: in each of them every client sends one update, at least 1.
        clients: at least 1.
        batch: clips of a client in a round, drawn anew from its own, at least 1.
        server_rate: of Adam at the server, which takes the mean gradient (Reddi et al., ICLR 2021, arXiv
            2003.00295); a mean delta is added as it is (McMahan et al., AISTATS 2017, arXiv 1602.05629).
    """

    rounds: int
    clients: int = 10
    batch: int = 1
    server_rate: float = 2e-3


@dataclass(frozen=True)
class Training:
    """What came of federated training.

    Attributes:
        model: after the last round, in the mode of the one that was given.
        bytes: mean length of an update.
        seconds: mean time in which a client computes one.
    """

    model: nn.Module
    bytes: float
    seconds: float


def train_federation(
    client: Client,
    clips: Tensor,
    labels: Tensor,
    federation: Federation,
    generator: torch.Generator,
    each_round: Callable[[], None] = lambda: None,
) -> Training:
    """Train a copy of a client's model.

    Args:
        client: model, loss, defense, mode and local training of every client.
        clips: (M, *clip shape), dealt out to the clients in turn; at least one each.
        labels: (M,) int64.
        federation: how it is trained.
        generator: draws the batches, and what the clients draw.
        each_round: called after every round; ends the training by raising.

    Raises:
        CapabilityError: a client could not compute its update, or the weights became NaN.
    """
    model = copy.deepcopy(client.model)
    worker = Client(model, client.loss, client.defense, mode=client.mode, local=client.local)
    weights = dict(trained_part(model).named_parameters())
    server = torch.optim.Adam(weights.values(), lr=federation.server_rate)
    memories: list[dict[str, Tensor]] = [{} for _ in range(federation.clients)]
    sizes, seconds = 0, 0.0
    for _ in range(federation.rounds):
        updates, start = [], time.perf_counter()
        for number, memory in enumerate(memories):
            own = torch.arange(number, len(clips), federation.clients)
            chosen = own[torch.randperm(len(own), generator=generator)[: federation.batch]]
            updates.append(worker.update(clips[chosen], labels[chosen], generator, memory))
        seconds += time.perf_counter() - start
        sizes += sum(update.wire_bytes for update in updates)
        _step(server, weights, updates)
        each_round()
    count = federation.rounds * federation.clients
    return Training(model, sizes / count, seconds / count)


def _step(server: torch.optim.Optimizer, weights: dict[str, nn.Parameter], updates: list[Update]) -> None:
    """Let the server take the mean of a round's updates."""
    with torch.no_grad():
        for name, weight in weights.items():
            mean = torch.stack([update.tensors[name] for update in updates]).mean(0).to(weight.device)
            if updates[0].facts.kind == "fedavg":
                weight.add_(mean)
            else:
                weight.grad = mean
    if updates[0].facts.kind == "fedsgd":
        server.step()
    server.zero_grad()
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise CapabilityError(
                f"parameter {name!r} became NaN in training; take smaller rates or less noise"
            )
