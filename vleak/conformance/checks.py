"""Checks of claims: each returns why a claim does not hold of the messages that are sent, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vleak.conformance.probe import Probe, distance, flat
from vleak.conformance.statistics import is_binomial, is_standard_normal, mean_is_zero
from vleak.federated import Defense, steps
from vleak.federated.claims import (
    CarriesError,
    Changes,
    Claim,
    ClearsSent,
    ClipsNorm,
    DrawsAnew,
    GaussianNoise,
    IgnoresClips,
    KeepsAbove,
    KeepsBetween,
    KeepsEntries,
    LimitsEntries,
    LimitsLevels,
    LimitsRank,
    NoisyMetric,
    OrthogonalUpdate,
    PassesThrough,
    PoissonSampling,
    RelativeError,
    SumsClients,
    Unbiased,
)

__all__ = ["CHECKS", "check_claim"]

_ROUNDING = 1e-4
_NORMS = (0.3, 3.0, 100.0)
"""Norms of the clips' gradients, in units of the clipping norm: some below it, some far above."""
_MESSAGES = 24
_LARGE = 1e4
"""Factor on gradients that any clipping norm cuts."""
_ROUNDS, _MOST_ROUNDS = 40, 160
_TRIES = 16
"""Messages of which one at least is to be another than an undefended one."""


def check_claim(claim: Claim, defense: Defense, seed: int, false_alarm: float) -> str:
    """Return why a claim does not hold; empty where nothing speaks against it.

    Args:
        claim: one of the kinds in `CHECKS`.
        defense: that states it.
        seed: of clips, weights and randomness.
        false_alarm: chance of a reason where there is none; only claims about randomness have one.

    Raises:
        CapabilityError: the defense refused, raised or broke its contract.
    """
    return CHECKS[type(claim)](claim, defense, seed, false_alarm)


def _clips_norm(claim: ClipsNorm, defense: Defense, seed: int, _: float) -> str:
    for clips in (1, 4) if claim.unit == "clip" else (1,):
        for factor in _NORMS:
            probe = scaled_probe(clips, seed, factor * claim.limit)
            absent = [(index,) for index in range(clips)]
            here = probe.send(defense, 0).tensors
            moved = max(distance(here, probe.send(defense, 0, without).tensors) for without in absent) * clips
            if moved > claim.limit * (1 + _ROUNDING):
                return (
                    f"one {claim.unit} of {clips} moved the message by {moved / claim.limit:.3g} times the "
                    f"limit of {claim.limit:g}"
                )
    return ""


def _gaussian_noise(claim: GaussianNoise, defense: Defense, seed: int, false_alarm: float) -> str:
    for clips in (1, 4):
        probe = Probe(clips, seed=seed)
        scale = (clips if claim.unit == "clip" else 1) / (claim.deviation * math.sqrt(2))
        sent = [probe.send(defense, index).tensors for index in range(_MESSAGES)]
        pairs = list(zip(sent[::2], sent[1::2], strict=True))
        names = [*sent[0], None] if clips > 1 else [None]
        for name in names:  # all together, and each tensor by itself
            rows = torch.stack([_difference(one, other, name) for one, other in pairs]) * scale
            if rows.shape[1] > 1:
                why = is_standard_normal(rows, false_alarm / (2 * len(names)))
                if why:
                    where = "" if name is None else f" in {name!r}"
                    return f"{why}{where}, in batches of {clips}"
    return ""


def _noisy_metric(claim: NoisyMetric, defense: Defense, seed: int, false_alarm: float) -> str:
    for clips in (1, 4):
        probe = Probe(clips, scale=_LARGE, seed=seed)
        sent = [probe.send(defense, index).metrics.get(claim.metric) for index in range(_MESSAGES)]
        if None in sent:
            return f"no {claim.metric!r} travels along"
        for index in range(clips):
            moved = abs(probe.send(defense, 0, (index,)).metrics[claim.metric] - float(sent[0] or 0))
            if moved > claim.limit * (1 + _ROUNDING):
                return f"one clip of {clips} moved {claim.metric!r} by {moved:.3g}, expected {claim.limit:g}"
        pairs = torch.tensor(sent, dtype=torch.float64).view(-1, 2)
        noise = (pairs[:, 0] - pairs[:, 1]) / (claim.deviation * math.sqrt(2))
        why = is_standard_normal(noise.view(2, -1), false_alarm / 2)
        if why:
            return f"{claim.metric!r}: {why}, in batches of {clips}"
    return ""


def _difference(one: dict[str, Tensor], other: dict[str, Tensor], name: str | None) -> Tensor:
    return flat(one) - flat(other) if name is None else (one[name] - other[name]).flatten().double()


def _keeps_entries(claim: KeepsEntries, defense: Defense, seed: int, false_alarm: float) -> str:
    probe = Probe(seed=seed)
    honest, sent = flat(probe.gradient()), [flat(probe.send(defense, index).tensors) for index in range(2)]
    kept, entries = sent[0] != 0, len(honest)
    expected = max(1, round(claim.fraction * entries))
    if claim.which == "largest" and int(kept.sum()) != expected:
        return f"{int(kept.sum())} of {entries} entries arrived, expected {expected}"
    if claim.which == "random":
        why = is_binomial(int(kept.sum()), entries, claim.fraction, false_alarm)
        if why:
            return f"entries that arrived: {why}"
        if torch.equal(kept, sent[1] != 0) and 0 < int(kept.sum()) < entries:
            return "two messages kept the same entries, expected others each time"
    if claim.which == "largest" and bool(honest[~kept].abs().max() > honest[kept].abs().min() * (1 + 1e-5)):
        return "an entry was dropped that is larger than one that was sent"
    ratio = sent[0][kept] / honest[kept]
    if not torch.allclose(ratio, ratio.new_ones(()), rtol=1e-4) and claim.which == "largest":
        return f"entries arrived at {ratio.min():.3g} to {ratio.max():.3g} times what they are"
    return ""


def _keeps_above(claim: KeepsAbove, defense: Defense, seed: int, _: float) -> str:
    probe = Probe(seed=seed)
    largest = float(flat(probe.gradient()).abs().max())
    for share in (0.01, 0.3, 3.0):  # the largest entry beside the threshold; at 3 none reaches it
        probe = Probe(scale=claim.threshold / (share * largest), seed=seed)
        honest, sent = flat(probe.gradient()), flat(probe.send(defense, 0).tensors)
        least = honest.abs().max().clamp(max=claim.threshold)
        expected = torch.where(honest.abs() >= least, honest, 0.0)
        why = _entries_differ(sent, expected, honest.abs(), least)
        if why:
            return why
    return ""


def _keeps_between(claim: KeepsBetween, defense: Defense, seed: int, _: float) -> str:
    probe = Probe(seed=seed)
    sent = probe.send(defense, 0).tensors
    for name, tensor in probe.gradient().items():
        honest = tensor.flatten().double()
        ordered, count = honest.abs().sort().values, len(honest)
        low, high = ordered[int(claim.smallest * count)], ordered[count - int(claim.largest * count) - 1]
        between = (honest.abs() >= low) & (honest.abs() <= high)
        why = _entries_differ(
            sent[name].flatten().double(), torch.where(between, honest, 0.0), honest.abs(), low, high
        )
        if why:
            return f"{name!r}: {why}"
    return ""


def _entries_differ(sent: Tensor, expected: Tensor, magnitudes: Tensor, *edges: Tensor) -> str:
    """Return how entries (P,) differ from what is expected; of those as large as an edge some may be kept."""
    unlike = ~torch.isclose(sent, expected, rtol=1e-4, atol=0.0)
    for edge in edges:
        tied = torch.isclose(magnitudes, edge, rtol=1e-6, atol=0.0)
        unlike &= ~(tied & (int(tied.sum()) > 1))
    if not unlike.any():
        return ""
    first = int(unlike.nonzero()[0])
    return (
        f"{int(unlike.sum())} of {len(sent)} entries are not as claimed; one of {magnitudes[first]:.3g} "
        f"arrived as {sent[first]:.3g}"
    )


def _relative_error(claim: RelativeError, defense: Defense, seed: int, _: float) -> str:
    for scale in (1.0, 1e-5):  # some entries are so small that only the floor allows their error
        probe = Probe(scale=scale, seed=seed)
        sent = probe.send(defense, 0).tensors
        for name, tensor in probe.gradient().items():
            magnitudes = tensor.double().abs()
            allowed = torch.maximum(
                claim.most * magnitudes, claim.of_largest * magnitudes.max() + claim.floor
            )
            excess = (sent[name].double() - tensor.double()).abs() / allowed.clamp(min=1e-45)
            if bool(excess.max() > 1 + 1e-3):
                return f"an entry of {name!r} has {float(excess.max()):.3g} times the error that is claimed"
    return ""


def _limits_entries(claim: LimitsEntries, defense: Defense, seed: int, _: float) -> str:
    for factor in _NORMS:
        tensors = scaled_probe(4, seed, factor * claim.most).send(defense, 0).tensors
        largest = max(float(tensor.abs().max()) for tensor in tensors.values() if tensor.ndim)
        if largest > claim.most * (1 + 1e-6):
            return f"an entry of {largest:.3g} was sent, expected at most {claim.most:g}"
    return ""


def _limits_levels(claim: LimitsLevels, defense: Defense, seed: int, _: float) -> str:
    tensors = Probe(seed=seed).send(defense, 0).tensors
    parts = (
        list(torch.split(flat(tensors), claim.bucket))
        if claim.bucket
        else [t.flatten() for t in tensors.values()]
    )
    found = max(len(torch.unique(part)) for part in parts)
    return (
        f"{found} different values share a scale, expected at most {claim.most}" if found > claim.most else ""
    )


def _limits_rank(claim: LimitsRank, defense: Defense, seed: int, _: float) -> str:
    for name, tensor in Probe(seed=seed).send(defense, 0).tensors.items():
        if tensor.ndim > 1:
            values = torch.linalg.svdvals(tensor.flatten(1).double())
            rank = int((values > values[0] * 1e-5).sum())
            if rank > claim.most:
                return f"{name!r} has rank {rank}, expected at most {claim.most}"
    return ""


def _unbiased(_: Unbiased, defense: Defense, seed: int, false_alarm: float) -> str:
    probe = Probe(seed=seed)
    honest = flat(probe.gradient())
    errors = torch.stack([flat(probe.send(defense, index).tensors) - honest for index in range(_MESSAGES)])
    signs = honest.sign() / math.sqrt(len(honest))
    for direction, what in ((honest / honest.norm(), "the gradient"), (signs, "its signs")):
        along = errors @ direction
        if float(along.abs().max()) <= _ROUNDING * float(honest.norm()) / math.sqrt(len(honest)):
            continue
        why = mean_is_zero(along, false_alarm / 2)
        if why:
            return f"the error along {what} {why}"
    return ""


def _orthogonal(_: OrthogonalUpdate, defense: Defense, seed: int, __: float) -> str:
    for factor in (1.0, 30.0):  # dividing by a norm where its square belongs shows at one of them only
        probe = Probe(scale=factor, seed=seed)
        honest, sent = flat(probe.gradient()), flat(probe.send(defense, 0).tensors)
        cosine = float(honest @ sent / (honest.norm() * sent.norm()).clamp(min=1e-30))
        if abs(cosine) > 1e-3:
            return f"cosine {cosine:+.3f} to the gradient, which has norm {honest.norm():.3g}"
    return ""


def _carries_error(_: CarriesError, defense: Defense, seed: int, __: float) -> str:
    probe = Probe(seed=seed)
    honest = flat(probe.gradient())
    memory: dict[str, Tensor] = {}
    total, norm, first = torch.zeros_like(honest), float(honest.norm()), 0.0
    for index in range(_MOST_ROUNDS):
        total += flat(probe.send(defense, index, memory=memory).tensors)
        last = float((total - (index + 1) * honest).norm()) / (index + 1)
        first = first if index else last
        if first <= _ROUNDING * norm or (index + 1 >= _ROUNDS and last <= first / 2):
            return ""
    return (
        f"after {_MOST_ROUNDS} rounds {last / norm:.0%} of the gradients is still missing, as after the first"
    )


def _ignores_clips(_: IgnoresClips, defense: Defense, seed: int, __: float) -> str:
    probe = Probe(seed=seed)
    here, there = (each.send(defense, 0).tensors for each in (probe, replace(probe, inverted=True)))
    moved = distance(here, there)
    return f"other clips of the same labels moved the message by {moved:.3g}" if moved else ""


def _sums_clients(claim: SumsClients, defense: Defense, seed: int, false_alarm: float) -> str:
    probe = Probe(claim.clients, seed=seed)
    draws = probe.draws(0)
    each = [probe.send(claim.each, 0, draws=draws, only=slice(i, i + 1)) for i in range(claim.clients)]
    expected, sent = steps.summed(each).tensors, probe.send(defense, 0).tensors
    if distance(expected, sent) > _ROUNDING * float(flat(expected).norm()):
        return f"the message is not the mean of what {claim.clients} clients send"
    return _inner_claims(claim.each, seed, false_alarm)


def _inner_claims(defense: Defense, seed: int, false_alarm: float) -> str:
    """Return why a claim of a defense within another one does not hold."""
    for inner in steps.stated_claims(defense):
        why = check_claim(inner, defense, seed, false_alarm)
        if why:
            return f"{defense.label}: {inner.name}: {why}"
    return ""


def _clears_sent(_: ClearsSent, defense: Defense, seed: int, __: float) -> str:
    probe, memory = Probe(seed=seed), dict[str, Tensor]()
    first = probe.send(defense, 0).tensors  # a gradient of what is sent and nothing else
    sent = flat(steps.transmit(defense, first, probe.draws(0), memory).tensors) != 0
    nothing = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    again = flat(steps.transmit(defense, nothing, probe.draws(1), memory).tensors) != 0
    count = int((sent & again).sum())
    return f"{count} of {int(sent.sum())} entries were sent again after a gradient of zero" if count else ""


def _passes_through(claim: PassesThrough, defense: Defense, seed: int, false_alarm: float) -> str:
    first, *others = claim.stages
    for index in range(2):
        probe = Probe(seed=seed)
        draws = probe.draws(index)
        message = probe.send(first, index, draws=draws)
        for stage in others:
            message = steps.transmit(stage, message.tensors, draws)
        if distance(message.tensors, probe.send(defense, index).tensors) > 0:
            return "the message is not what its stages make of each other's"
    inner = [_inner_claims(stage, seed, false_alarm / len(claim.stages)) for stage in claim.stages]
    return next((why for why in inner if why), "")


def _poisson_sampling(claim: PoissonSampling, defense: Defense, seed: int, false_alarm: float) -> str:
    probe, draws = Probe(seed=seed), 10 * _MESSAGES
    hits = torch.zeros(draws, probe.clips, dtype=torch.bool)
    for index in range(draws):
        here = probe.send(defense, index).tensors
        for clip in range(probe.clips):
            hits[index, clip] = distance(here, probe.send(defense, index, (clip,)).tensors) > 0
    each = false_alarm / (probe.clips + 1)
    for clip in range(probe.clips):
        why = is_binomial(int(hits[:, clip].sum()), draws, claim.rate, each)
        if why:
            return f"clip {clip} took part in {why}"
    pairs = hits[:, 0] & hits[:, 1]
    why = is_binomial(int(pairs.sum()), draws, claim.rate**2, each)
    return f"two clips took part together in {why}" if why else ""


def _changes(_: Changes, defense: Defense, seed: int, __: float) -> str:
    # A weight that is drawn may leave one message as it was, as that of mixup does.
    probe = Probe(seed=seed)
    honest = probe.gradient(defense=defense)
    least = 1e-6 * float(flat(honest).norm())
    if any(distance(honest, probe.send(defense, number).tensors) > least for number in range(_TRIES)):
        return ""
    return "the message is the gradient of an undefended client"


def _draws_anew(_: DrawsAnew, defense: Defense, seed: int, __: float) -> str:
    probe = Probe(seed=seed)
    one, other = probe.send(defense, 0).tensors, probe.send(defense, 1).tensors
    same = [name for name, tensor in one.items() if tensor.any() and torch.equal(tensor, other[name])]
    return f"{same[0]!r} was the same in two messages" if same else ""


CHECKS: dict[type[Claim], Callable[[Any, Defense, int, float], str]] = {
    CarriesError: _carries_error,
    Changes: _changes,
    ClearsSent: _clears_sent,
    ClipsNorm: _clips_norm,
    DrawsAnew: _draws_anew,
    GaussianNoise: _gaussian_noise,
    IgnoresClips: _ignores_clips,
    KeepsAbove: _keeps_above,
    KeepsBetween: _keeps_between,
    KeepsEntries: _keeps_entries,
    LimitsEntries: _limits_entries,
    LimitsLevels: _limits_levels,
    LimitsRank: _limits_rank,
    NoisyMetric: _noisy_metric,
    OrthogonalUpdate: _orthogonal,
    PassesThrough: _passes_through,
    PoissonSampling: _poisson_sampling,
    RelativeError: _relative_error,
    SumsClients: _sums_clients,
    Unbiased: _unbiased,
}
"""Check of every kind of claim."""


def scaled_probe(clips: int, seed: int, norm: float) -> Probe:
    """Return a probe whose largest gradient of one clip, alone in the batch, has a norm."""
    probe = Probe(clips, seed=seed)
    others = [tuple(set(range(clips)) - {index}) for index in range(clips)]
    largest = max(float(flat(probe.gradient(absent)).norm()) * clips for absent in others)
    return replace(probe, scale=norm / largest)
