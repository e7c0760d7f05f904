"""Canaries: gradients that are in a client's batch or not, and what the message says of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vleak.auditing.release import Release, close
from vleak.errors import CapabilityError, InputError, require
from vleak.federated import (
    LOSSES,
    Channel,
    Client,
    Defense,
    Privacy,
    PublicFacts,
    Update,
    per_clip_gradients,
    steps,
    trained_part,
)
from vleak.seeds import fork, generator

__all__ = ["CanaryRun", "Pair", "canary_runs"]

# Norms of the orthogonal canaries, in clipping norms: one that a wrong factor of the clip may pass, and one
# that shows any clip but the right one.
_NORMS = (2.0, 100.0)

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Scores of two messages, in each of which every canary is in one and out of the other.

    Attributes:
        inside, outside: (canaries,) the message's part along each canary, times the batch size over the
            clipping norm: under the claim of a clipped sum at most 1 apart in the mean.
        noise: (2,) the part of both messages along a direction in which no clip has a gradient.
    """

    inside: Numbers
    outside: Numbers
    noise: Numbers


class CanaryRun:
    """Canaries of one batch, each of which every message has or has not, at random and apart from the others.

    The rest of the batch is in every message. A row without its canary counts in the batch size with a zero
    gradient: the adjacency "zero out".
    """

    def __init__(self, defense: Defense, samples: Mapping[str, Tensor], canaries: Mapping[str, int]) -> None:
        """Take a batch by its per-clip gradients.

        Args:
            defense: of the client.
            samples: (N, *parameter shape) float32 by name, on the CPU.
            canaries: row of each canary by its name; rows of others are always in.

        Raises:
            CapabilityError: the defense refused, or broke its contract.
        """
        self.canaries = tuple(canaries)
        self._release = Release(defense, samples)
        self._rows = torch.tensor(list(canaries.values()))
        flat = _flat_rows(samples)
        chosen = flat[self._rows]
        self.norms = tuple(chosen.norm(dim=1).tolist())
        self.channel = _channel(defense, samples, self._release.rows)
        self.clip_norm = self.channel.clip_norm if math.isfinite(self.channel.clip_norm) else 1.0
        null = _orthogonal(flat, 1, generator("null"))
        directions = torch.cat([chosen / chosen.norm(dim=1, keepdim=True), null])
        # In float32, as the message is: its rounding is far below the noise.
        self._directions = (directions * self._release.rows / self.clip_norm).float()

    @property
    def gaussian(self) -> bool:
        """Whether the scores are Gaussian by the channel: such noise, and no entry left out."""
        channel = self.channel
        return channel.noise_deviation is not None and channel.masks is None and channel.kept_fraction == 1

    @property
    def noise_deviation(self) -> float | None:
        """Standard deviation that `Pair.noise` has by the defense's channel; None where it states none."""
        stated = self.channel.noise_deviation
        return None if not stated else stated / self.clip_norm

    def repeats(self) -> bool:
        """Return whether two seeds that agree in 32 bits make the same message.

        PyTorch's CPU generator keeps no more of a seed: whoever runs through them all takes the noise off.

        Raises:
            CapabilityError: the defense broke its contract.
        """
        every = torch.ones(self._release.rows, dtype=torch.bool)
        seeds = (1, 1 + 2**32)
        first, second = (self._release.send(every, torch.Generator().manual_seed(seed)) for seed in seeds)
        return torch.equal(first, second)

    def pair(self, numbers: torch.Generator) -> Pair:
        """Send two messages, each with randomness of its own, and return their scores.

        Raises:
            CapabilityError: the defense broke its contract.
        """
        inside = torch.randint(2, (len(self._rows),), generator=numbers).bool()
        first, second = self._send(inside, numbers), self._send(~inside, numbers)
        picks = inside.numpy()
        return Pair(
            np.where(picks, first[:-1], second[:-1]),
            np.where(picks, second[:-1], first[:-1]),
            np.array([first[-1], second[-1]]),
        )

    def _send(self, inside: Tensor, numbers: torch.Generator) -> Numbers:
        present = torch.ones(self._release.rows, dtype=torch.bool)
        present[self._rows] = inside
        message = self._release.send(present, fork(numbers))
        return (self._directions @ message).double().numpy()


def canary_runs(
    client: Client, clips: Tensor, labels: Tensor, numbers: torch.Generator
) -> tuple[Privacy, list[CanaryRun]]:
    """Return what a client's defense claims, and the canary runs that put it to the test.

    Canaries are the first clip of the batch itself, and two gradients orthogonal to the whole batch and to
    each other, of 2 and of 100 clipping norms. Where the unit is the client, a canary is all that it has, and
    has a run of its own. Audited is one release, a gradient by a model in mode "eval", of which what is
    claimed of local steps and of several rounds is composed.

    Args:
        client: whose defense claims privacy.
        clips: (N, C, T, H, W) float32 in [0, 1], or what else the client takes.
        labels: (N,) int64.
        numbers: CPU generator of the audit.

    Raises:
        InputError: the defense proves nothing, or the model has too few entries for the canaries.
        CapabilityError: the defense refused, or what the client sends is no function of its clips' gradients,
            so that canaries given as gradients say nothing of it.
    """
    require("client", client, Client, "a vleak.Client with a defense")
    require("numbers", numbers, torch.Generator, "a torch.Generator on the CPU")
    defense = client.defense
    client = Client(client.model, client.loss, defense)
    privacy = client.privacy()
    if privacy is None:
        raise InputError(
            f"defense {defense.label!r} proves nothing, so there is no claim to audit; give it noise, or a "
            "defense with a certificate"
        )
    sent = client.update(clips, labels, generator("replay"))  # which refuses clips and labels that are none
    model = copy.deepcopy(trained_part(client.model)).eval()
    device = next(model.parameters()).device
    samples = {
        name: sample.cpu()
        for name, sample in per_clip_gradients(
            model, LOSSES[client.loss], clips.to(device), labels.to(device)
        ).items()
    }
    _check_replay(client, sent, samples)
    if privacy.unit == "one client":
        samples = {name: sample.mean(0, keepdim=True) for name, sample in samples.items()}
    rows, canaries = _with_canaries(defense, samples, numbers)
    if privacy.unit != "one client":
        return privacy, [CanaryRun(defense, rows, canaries)]
    alone = {
        name: {key: sample[row : row + 1] for key, sample in rows.items()} for name, row in canaries.items()
    }
    return privacy, [CanaryRun(defense, sample, {name: 0}) for name, sample in alone.items()]


def _check_replay(client: Client, sent: Update, samples: Mapping[str, Tensor]) -> None:
    """Refuse a client whose update is another than the defense makes of the gradients alone."""
    release = Release(client.defense, samples)
    replayed = release.send(torch.ones(release.rows, dtype=torch.bool), generator("replay"))
    if not close(torch.cat([tensor.flatten() for tensor in sent.tensors.values()]), replayed):
        raise CapabilityError(
            f"{steps.describe(client.defense)}: the update is no function of the clips' gradients and the "
            "generator, so canaries cannot take their place; audit the defense without what acts on clips or "
            "model"
        )


def _with_canaries(
    defense: Defense, samples: Mapping[str, Tensor], numbers: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the rows of a batch with orthogonal canaries behind them, and the row of each canary."""
    flat = _flat_rows(samples)
    first = float(flat[0].norm())
    bound = _channel(defense, samples, len(flat)).clip_norm
    unit = bound if math.isfinite(bound) else first or 1.0
    added = _orthogonal(flat, len(_NORMS), numbers) * unit * torch.tensor(_NORMS)[:, None]
    sizes = [sample[0].numel() for sample in samples.values()]
    parts = torch.split(added.float(), sizes, dim=1)
    rows = {
        name: torch.cat([sample, part.reshape(-1, *sample.shape[1:])])
        for (name, sample), part in zip(samples.items(), parts, strict=True)
    }
    canaries = {f"orthogonal, {norm:g} C": len(flat) + index for index, norm in enumerate(_NORMS)}
    # A clip without a gradient leaves no trace that a score could find.
    return rows, ({"own clip": 0} if first > 0 else {}) | canaries


def _channel(defense: Defense, samples: Mapping[str, Tensor], rows: int) -> Channel:
    """Return what the defense states of a message of so many rows; of a defense that states none, nothing."""
    update = Update({name: sample[0] for name, sample in samples.items()}, 0, PublicFacts(batch_size=rows))
    return steps.stated_channel(defense, update) or Channel()


def _flat_rows(samples: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([sample.reshape(len(sample), -1) for sample in samples.values()], dim=1).double()


def _orthogonal(rows: Tensor, count: int, numbers: torch.Generator) -> Tensor:
    """Return random directions of norm 1 that are orthogonal to some rows and to each other.

    Raises:
        InputError: there are too few entries for them.
    """
    entries = rows.shape[1]
    if entries < 2 * (len(rows) + count):
        raise InputError(
            f"{entries} trained entries are too few for canaries orthogonal to {len(rows)} gradients; give "
            "fewer clips or a larger model"
        )
    drawn = torch.randn(count, entries, generator=numbers, dtype=torch.float64)
    drawn = drawn - (drawn @ torch.linalg.pinv(rows)) @ rows
    columns: Tensor = torch.linalg.qr(drawn.T).Q
    return columns.T.contiguous()
