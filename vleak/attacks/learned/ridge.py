"""Kernel ridge regression from updates to clips, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vleak.attacks.base import Hooks
from vleak.attacks.learned.rehearsal import Rehearsal, Sender, folded, stop_or_report
from vleak.federated import Update
from vleak.seeds import generator as seeded

__all__ = ["RIDGES", "UpdateMap", "best_ridge", "errors_left_out", "fit"]

RIDGES = tuple(10 ** (exponent / 2) for exponent in range(-4, 11))
"""Ridges that are tried, in units of the mean eigenvalue."""

_ROUNDING = 0.01
"""Part of a message's norm that may be lost where it is kept as bfloat16, of eight binary digits."""
_ROUNDED = 2.0**-20
"""Part of the squared norm of messages that is rounding, far below that of bfloat16."""


@dataclass(frozen=True)
class UpdateMap:
    """An affine map from updates to clips, in terms of inner products with the rehearsed messages.

    Attributes:
        rehearsal: the messages.
        trust: (tensor,) weight of each tensor's inner product.
        scales: (N,) factors on the messages.
        unit: whether updates are brought to norm 1 first.
        gain: mean of what arrives over what was expected.
        centre: (N,) inner product of every message with the mean of the unaltered ones.
        solution: (N, N), from centred inner products to weights on what stands in the rehearsed batches.
    """

    rehearsal: Rehearsal
    trust: Tensor
    scales: Tensor
    unit: bool
    gain: float
    centre: Tensor
    solution: Tensor

    def answer(self, update: Update) -> Tensor:
        """Return the clips (B, C, T, H, W) of an update."""
        queries = _queries([update], self.rehearsal, unit=self.unit)
        inner = self.rehearsal.inner([q / self.gain for q in queries])[..., 0]
        products = self.scales * (self.trust[:, None] * inner).sum(0)
        clips, mean = self.rehearsal.clips, _unaltered(self.rehearsal)
        weights = self.solution @ _centred(products - self.centre, mean).double()
        shares = _shares(self.rehearsal, mean, weights[:, None])[..., 0].float()
        return (shares @ clips.flatten(1)).view(len(shares), *clips.shape[1:]).clamp(0, 1)


def fit(sender: Sender, rehearsal: Rehearsal, count: int, hooks: Hooks) -> UpdateMap:
    """Fit the map: how far to trust each tensor, and the ridge, from clips sent through the defense.

    Args:
        sender: who sends them.
        rehearsal: what is fitted on.
        count: clips that are sent, at most.
        hooks: asked before each.

    Raises:
        StoppedError: the caller wants no more.
    """
    # Where gradients are clipped the noise hides a message's norm, and clipping has told it already.
    unit = math.isinf(sender.channel.clip_norm)
    chosen = torch.randperm(rehearsal.public, generator=seeded("inverter", "queries"))[:count]
    norms = rehearsal.products.diagonal(dim1=1, dim2=2).sum(0).sqrt()
    scales = 1 / norms.clamp(min=1e-30) if unit else torch.ones_like(norms)
    expected = [m[chosen].float() * scales[chosen, None] for m in rehearsal.messages]
    sent = _queries(_send(sender, rehearsal, chosen[:1], hooks), rehearsal, unit=unit)
    if _is_expected(sent, expected):
        sent = expected  # there is no noise, and the others would be as expected too
    elif len(chosen) > 1:
        others = _queries(_send(sender, rehearsal, chosen[1:], hooks), rehearsal, unit=unit)
        sent = [torch.cat(parts) for parts in zip(sent, others, strict=True)]
    gain = _gain(sent, expected) if unit else 1.0
    sent = [s / gain for s in sent]
    trust = _trust(rehearsal, scales, sent, expected)
    gram = scales[:, None] * torch.einsum("t,tnm->nm", trust, rehearsal.products) * scales
    products = scales[:, None] * (trust[:, None, None] * rehearsal.inner(sent)).sum(0)
    ridge = best_ridge(rehearsal, chosen, gram.double(), products.double())
    mean = _unaltered(rehearsal)
    centre = gram @ mean.float()
    gram = _centred(_centred(gram.double(), mean).T, mean)
    solution = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    return UpdateMap(rehearsal, trust, scales, unit, gain, centre, solution)


def _send(sender: Sender, rehearsal: Rehearsal, chosen: Tensor, hooks: Hooks) -> list[Update]:
    """Send the chosen batches through the defense."""
    updates: list[Update] = []
    for index in chosen.tolist():
        stop_or_report(hooks, len(rehearsal.clips) + len(updates))
        batch = rehearsal.clips[rehearsal.slots[index]]
        updates.append(sender.sent(batch, seeded("inverter", "sent", index)))
    return updates


def _is_expected(sent: list[Tensor], expected: list[Tensor]) -> bool:
    """Return whether the first message is what was expected of it, in every tensor, but for rounding."""
    return all(
        float((arrived[0] - meant[0]).norm()) <= _ROUNDING * float(meant[0].norm())
        for arrived, meant in zip(sent, expected, strict=True)
    )


def _queries(updates: list[Update], rehearsal: Rehearsal, *, unit: bool) -> list[Tensor]:
    stacked = {name: torch.stack([u.tensors[name] for u in updates]) for name in updates[0].tensors}
    parts = folded(stacked, rehearsal.entries)
    if not unit:
        return parts
    norms = sum(part.square().sum(1, keepdim=True) for part in parts)
    assert isinstance(norms, Tensor)
    return [part / norms.sqrt().clamp(min=1e-30) for part in parts]


def _gain(sent: list[Tensor], expected: list[Tensor]) -> float:
    """Return what part of messages of norm 1 is what was expected; the rest is the defense's noise."""
    agreement = sum(float((s * e).sum()) for s, e in zip(sent, expected, strict=True))
    return max(agreement / max(sum(float(e.square().sum()) for e in expected), 1e-30), 0.01)


def _trust(rehearsal: Rehearsal, scales: Tensor, sent: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Return a weight a tensor: one over what the defense's noise, and some of the signal, vary in it."""
    weights = []
    for products, arrived, meant in zip(rehearsal.products, sent, expected, strict=True):
        noise = float((arrived - meant).square().mean())
        signal = _variance(products, scales) / meant.shape[1]
        weights.append(1 / (noise + 0.1 * signal) if signal > 0 else 0.0)
    return torch.tensor(weights) / max(max(weights), 1e-30)


def _variance(products: Tensor, scales: Tensor) -> float:
    """Return the summed variance of messages times scales (N,) from their inner products (N, N).

    It is 0 where the messages differ by rounding alone.
    """
    products, scales = products.double(), scales.double()
    energy = float((scales.square() * products.diagonal()).sum())
    spread = energy - float(scales @ products @ scales) / len(scales)
    return spread / max(len(scales) - 1, 1) if spread > _ROUNDED * energy else 0.0


# Messages and clips are centred alike, on those that are not altered: where the noise leaves nothing, the
# answer is then the mean public clip, and where there is no noise, the map has no offset that clips lack.


def _unaltered(rehearsal: Rehearsal, kept: Tensor | None = None) -> Tensor:
    """Return weights (N,) of a mean over the unaltered batches, or over all where none of them is kept."""
    kept = torch.ones(len(rehearsal.slots), dtype=torch.bool) if kept is None else kept
    first = kept & (torch.arange(len(kept)) < rehearsal.public)
    chosen = (first if bool(first.any()) else kept).double()
    return chosen / chosen.sum()


def _centred(products: Tensor, mean: Tensor) -> Tensor:
    """Return products (N, ...) of messages with their mean, of weights (N,), taken out."""
    middle: Tensor = torch.tensordot(mean.to(products), products, 1)
    return products - middle


def _shares(rehearsal: Rehearsal, mean: Tensor, weights: Tensor) -> Tensor:
    """Return (B, N, n), what part of the answer every clip is: the mean, and weights (N, n) times offsets."""
    shares = weights + mean[:, None] * (1 - weights.sum(0))
    return torch.stack([torch.zeros_like(shares).index_add(0, slot, shares) for slot in rehearsal.slots.T])


def best_ridge(rehearsal: Rehearsal, chosen: Tensor, gram: Tensor, products: Tensor) -> float:
    """Return the ridge that rebuilds the rehearsed queries best, each left out of the fit.

    Args:
        rehearsal: the messages.
        chosen: (queries,), the batches that were sent.
        gram: (N, N), inner products of messages. products: (N, queries), of messages with what was sent.
    """
    mean = _unaltered(rehearsal)
    energy = float(_centred(_centred(gram, mean).T, mean).trace()) / len(gram)
    # Messages that are all alike differ by rounding, which is not to be inverted.
    least = 1e-12 * float(gram.trace()) / len(gram)
    ridges = torch.tensor(RIDGES, dtype=gram.dtype) * max(energy, least, 1e-30)
    flat = rehearsal.clips.flatten(1)
    likeness = (flat @ flat.T).double()
    errors = torch.zeros_like(ridges)
    for at, query in enumerate(chosen.tolist()):
        errors += errors_left_out(rehearsal, query, gram, products[:, at], likeness, ridges)
    # Where batches leave nothing to fit on, all ridges are alike, and the largest claims least.
    return float(ridges[errors <= errors.min()].max())


def errors_left_out(
    rehearsal: Rehearsal, query: int, gram: Tensor, products: Tensor, likeness: Tensor, ridges: Tensor
) -> Tensor:
    """Return the squared error for every ridge of a query whose clips, in all their versions, are left out.

    They are left out of the means too: with them in, one clip of few is what the others lack.

    Args:
        rehearsal: the messages.
        query: which batch.
        gram: (N, N), inner products of messages.
        products: (N,), of messages with the query.
        likeness: (N, N), inner products of clips.
        ridges: (n,).
    """
    kept = ~torch.isin(rehearsal.sources, rehearsal.sources[query]).any(1)
    if not bool(kept.any()):
        return torch.zeros_like(ridges)
    mean = _unaltered(rehearsal, kept)
    centred = _centred(_centred(gram, mean).T, mean)[kept][:, kept]
    values, vectors = torch.linalg.eigh(centred)
    projected = vectors.T @ _centred(products - gram @ mean, mean)[kept]
    weights = torch.zeros(len(gram), len(ridges), dtype=gram.dtype)
    weights[kept] = vectors @ (projected[:, None] / (values.clamp(min=0)[:, None] + ridges))
    gaps = -_shares(rehearsal, mean, weights)
    gaps[torch.arange(len(gaps)), rehearsal.slots[query]] += 1
    errors: Tensor = torch.einsum("bir,ij,bjr->r", gaps, likeness, gaps)
    return errors
