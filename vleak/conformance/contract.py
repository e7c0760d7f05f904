"""Checks that every defense has to pass, whatever it claims: its contract, and that it fails closed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vleak.certificates import gaussian_epsilon
from vleak.conformance.probe import Probe, distance
from vleak.errors import VleakError
from vleak.federated import Defense, PublicFacts, Update, steps
from vleak.federated.claims import (
    Claim,
    ClipsNorm,
    GaussianNoise,
    LimitsRank,
    NoisyMetric,
    PassesThrough,
    SumsClients,
)
from vleak.seeds import generator

__all__ = ["CONTRACT"]


def _repeats(defense: Defense, seed: int) -> str:
    """Return whether something else than the generator decides on the message."""
    probe = Probe(seed=seed)
    before = torch.get_rng_state()
    first, again = probe.send(defense, 0), probe.send(defense, 0)
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        return "it draws from the process-wide generator; draw from the one that each step is given"
    if distance(first.tensors, again.tensors) or first.wire_bytes != again.wire_bytes:
        return "two messages of one seed differ; draw from the generator that each step is given"
    return ""


def _leaves_alone(defense: Defense, seed: int) -> str:
    """Return what the defense changed that is not its own."""
    probe = Probe(seed=seed)
    weights = copy.deepcopy(probe.model.state_dict())
    gradient = probe.gradient()
    kept = {name: tensor.clone() for name, tensor in gradient.items()}
    steps.transmit(defense, gradient, generator("conformance", "alone"))
    if distance(gradient, kept):
        return "transmit changed the gradient that it was given"
    probe.send(defense, 0)
    if any(not torch.equal(weights[name], value) for name, value in probe.model.state_dict().items()):
        return "it changed the model"
    return ""


def _fails_closed(defense: Defense, seed: int) -> str:
    """Return whether a message leaves although the defense cannot have done its work."""
    broken = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in Probe(seed=seed).gradient().items()
    }
    try:
        steps.transmit(defense, broken, generator("conformance", "broken"))
    except VleakError:
        pass
    else:
        return "a gradient of NaN was turned into a message"
    claims = steps.stated_claims(defense)
    limits = [claim.limit for claim in claims if isinstance(claim, ClipsNorm) and claim.unit == "clip"]
    return _mixing_clips(defense, limits[0], seed) if limits else ""


def _mixing_clips(defense: Defense, limit: float, seed: int) -> str:
    """Return whether a batch is sent unprotected in which batch norm mixes the clips."""
    probe = _Mixing(scale=1e3 * limit, seed=seed)
    try:
        one, other = (probe.send(defense, 0, absent).tensors for absent in ((), (0,)))
    except VleakError:
        return ""
    moved = distance(one, other) * probe.clips
    return (
        f"with batch norm one clip moved the message by {moved / limit:.3g} limits"
        if moved > 2 * limit
        else ""
    )


class _Mixing(Probe):
    """Probe whose batch norm, in train mode, mixes the clips."""

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        first, *others = super().model.children()
        norm = nn.BatchNorm3d(8)
        return nn.Sequential(first, norm, *others).train()


def _carries_its_bytes(defense: Defense, seed: int) -> str:
    """Return whether fewer bytes are stated than what arrived needs."""
    message = Probe(seed=seed).send(defense, 0)
    ranks = [claim.most for claim in steps.stated_claims(defense) if isinstance(claim, LimitsRank)]
    rank = min(ranks, default=None)
    # Each tensor by itself: which one an entry is of is known.
    least = sum(_information_of(tensor, rank) for tensor in message.tensors.values())
    # Of a sum the bytes are those of one client, and sparse ones send entries of their own each.
    stated = message.wire_bytes * max(1, len(message.senders))
    return f"states {stated} bytes, but what arrived needs {least:.0f}" if stated < 0.98 * least else ""


def information(entries: Tensor) -> float:
    """Return how many bytes a message needs at least, in which positions are not known beforehand.

    The positions of entries that are not zero, and for each the entropy of its value, where few values occur;
    else the sign, the entropy of the exponent, and the bits of the mantissa that are in use.

    Args:
        entries: (P,) float32.
    """
    values = entries[entries != 0]
    kept, total = len(values), len(entries)
    if not kept:
        return 0.0
    places = (math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)) / math.log(2)
    words = values.numpy().view(np.uint32)
    counts = np.unique(words, return_counts=True)[1]
    if len(counts) <= kept / 2:  # values of a grid, which both sides know
        each = _entropy(counts)
    else:
        exponents = np.unique(words >> 23 & 0xFF, return_counts=True)[1]
        each = 1 + _entropy(exponents) + _used(words & np.uint32(0x7FFFFF))
    return float(places + kept * each) / 8


def _information_of(tensor: Tensor, most: int | None) -> float:
    """Return how many bytes a tensor needs at least, which may be a matrix of a limited rank."""
    if most is None or tensor.ndim < 2 or min(tensor.flatten(1).shape) <= most:
        return information(tensor.flatten())
    left, values, right = torch.linalg.svd(tensor.flatten(1).double(), full_matrices=False)
    rank = int((values > values[0] * 1e-5).sum())
    factors = torch.cat([left[:, :rank].flatten(), (values[:rank, None] * right[:rank]).flatten()])
    free = 1 - rank**2 / max(len(factors), 1)  # any invertible matrix between the factors cancels
    return information(factors.float()) * free


def _used(mantissas: npt.NDArray[np.uint32]) -> int:
    lowest = int(np.bitwise_or.reduce(mantissas))
    return 0 if not lowest else 23 - ((lowest & -lowest).bit_length() - 1)


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _certificate_follows(defense: Defense, seed: int) -> str:
    """Return whether a certificate promises more than the claims about clipping and noise give."""
    privacy = steps.stated_privacy(defense)
    if privacy is None:
        return ""
    claims = _claims_before_post_processing(defense)
    limits = {claim.unit: claim.limit for claim in claims if isinstance(claim, ClipsNorm)}
    noises = {claim.unit: claim.deviation for claim in claims if isinstance(claim, GaussianNoise)}
    units = limits.keys() & noises.keys()
    if not units:
        return "it states epsilon, but claims no clipping and noise of one unit that it would follow from"
    metrics = [(claim.deviation / claim.limit) ** -2 for claim in claims if isinstance(claim, NoisyMetric)]
    multiplier = (max(noises[unit] / limits[unit] for unit in units) ** -2 + sum(metrics)) ** -0.5
    least = gaussian_epsilon(multiplier, privacy.delta)
    if privacy.epsilon < least * (1 - 1e-6):
        return f"states epsilon {privacy.epsilon:.3g} of one release, its noise and clipping give {least:.3g}"
    if abs(privacy.noise_multiplier - multiplier) > 1e-6 * multiplier:
        return f"states noise multiplier {privacy.noise_multiplier:.3g}, its claims give {multiplier:.3g}"
    return ""


def _side_metrics(defense: Defense, seed: int) -> str:
    """Return which number that travels along tells of a clip what clipping and noise are to hide."""
    claims = _claims_before_post_processing(defense)
    if not any(isinstance(claim, ClipsNorm | GaussianNoise) for claim in claims):
        return ""
    noisy = {claim.metric for claim in claims if isinstance(claim, NoisyMetric)}
    for clips in (1, 4):
        probe = Probe(clips * defense.summed_clients(), seed=seed)
        here, there = (probe.send(defense, 0, absent).metrics for absent in ((), (0,)))
        for name in (here.keys() | there.keys()) - noisy:
            if here.get(name) != there.get(name):
                return (
                    f"{name!r} travels along and is {here.get(name)} with a clip and {there.get(name)} "
                    "without it; leave it out, or add noise and claim NoisyMetric"
                )
    return ""


def _claims_before_post_processing(defense: Defense) -> list[Claim]:
    """Return the claims of a defense, and of those whose messages it passes on."""
    claims = list(steps.stated_claims(defense))
    through = [stage for claim in claims if isinstance(claim, PassesThrough) for stage in claim.stages]
    through += [claim.each for claim in claims if isinstance(claim, SumsClients)]
    return claims + [claim for stage in through for claim in _claims_before_post_processing(stage)]


def _channel_agrees(defense: Defense, seed: int) -> str:
    """Return where the channel, by which attacks know the defense, differs from the claims."""
    probe = Probe(seed=seed)
    message = probe.send(defense, 0)
    facts = PublicFacts(batch_size=probe.clips, loss="cross_entropy")
    update = Update(
        message.tensors, message.wire_bytes, facts, metrics=message.metrics, senders=message.senders
    )
    steps.stated_channel(defense, update)
    steps.check_first(defense, update)
    return ""  # both refuse what does not agree


CONTRACT: dict[str, Callable[[Defense, int], str]] = {
    "one seed, one message": _repeats,
    "leaves model and gradient alone": _leaves_alone,
    "fails closed": _fails_closed,
    "bytes": _carries_its_bytes,
    "certificate follows from claims": _certificate_follows,
    "channel agrees with claims": _channel_agrees,
    "side metrics": _side_metrics,
}
"""Checks by name; each returns why it fails, or nothing."""
