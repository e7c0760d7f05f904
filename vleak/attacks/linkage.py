"""Linkage: which of these clips was it? The attacker holds the candidates and asks the update alone.

A defense may leave nothing to be seen and still tell who was filmed: rebuilding needs many bits, choosing
among N candidates needs log2(N). This is the sharpest attacker that an identification bound speaks of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vleak.attacks.apart import taken_apart
from vleak.attacks.observation import Observation
from vleak.errors import InputError
from vleak.federated import Channel, Scales, Update

__all__ = ["LINK_DRAWS", "link_chance", "link_rank", "link_scores"]

LINK_DRAWS = 4096
"""Messages that `link_chance` simulates, where nobody says how many."""
_PART = 2**20
"""Entries of all candidates that are held in float64 at once."""


def link_scores(observation: Observation, candidates: Sequence[Sequence[Update]]) -> Tensor:
    """Score every candidate by how well the update that it would have caused agrees with the one that came.

    Of a batch the companions are unknown, and what they add to the update is alike for all candidates, so
    that the largest cosine decides there too. Of a sum that can be taken apart it is the largest over the
    clients, each by what it alone sent.

    The label of a clip is not seen in it, so a candidate is a list of hypotheses, one undefended update for
    every label that it may carry. Behind Gaussian noise of a known channel the score is the logarithm of the
    mean likelihood over them, and choosing the largest is the Bayes rule for equally likely candidates and
    labels: nobody does better. Where the message carries scales of the gradient exact (`Channel.scales`), the
    nearest to them is the likeliest. Otherwise it is the largest cosine, over the entries that carry a
    measurement.

    Args:
        observation: of the batch that the clip was in.
        candidates: N lists of undefended updates of one clip, computed by the attacker on the same model.

    Returns:
        (N,) float64, larger is likelier.

    Raises:
        InputError: there is no candidate, or one is an update of another model.
    """
    update = observation.update
    if not candidates or not all(candidates):
        raise InputError("linkage: expected at least one update a candidate; give the clips to choose from")
    names = list(update.tensors)
    for index, hypotheses in enumerate(candidates):
        if any(_shapes(hypothesis) != _shapes(update) for hypothesis in hypotheses):
            raise InputError(
                f"linkage: candidate {index} has other tensors than the update; compute both on one model"
            )
    clients = taken_apart(observation)
    if len(clients) > 1:  # the clip is in the update of one of them
        return torch.stack([link_scores(own, candidates) for own in clients]).amax(0)
    sent, channel = _flat(update.tensors, names), observation.channel or Channel()
    if observation.knowledge.batch_size > 1:
        channel = replace(channel, noise_deviation=None, transform=None, scales=None)
    if channel.scales is not None:
        return torch.tensor([_by_scales(channel.scales, group) for group in candidates], dtype=torch.float64)
    # One candidate at a time: in float64 all of them would take twice the memory of the updates.
    flat = ([_flat(channel.measured(_of_layers(h, channel)), names) for h in group] for group in candidates)
    return torch.stack([_score(sent, hypotheses, channel, names) for hypotheses in flat])


def link_chance(
    candidates: Sequence[Update],
    index: int,
    channel: Channel,
    generator: torch.Generator,
    draws: int = LINK_DRAWS,
) -> float | None:
    """Return how often a candidate is picked over the noise, by who holds all and knows their labels.

    This is the attacker whom an identification bound speaks of. The likelihood depends on the noise only
    through its products with the candidates, normal numbers whose covariances are the candidates' Gram
    matrix: a draw takes N numbers instead of one an entry.

    Args:
        candidates: the undefended update of each clip under its own label.
        index: of the candidate that was sent.
        channel: of the defense.
        generator: of the noise.
        draws: messages that are simulated, at least 1.

    Returns:
        share in [0, 1]; None where the noise of the channel is not Gaussian.
    """
    if not channel.noise_deviation:
        return None
    gram = _gram([channel.measured(_of_layers(each, channel)) for each in candidates])
    factors = (channel.clip_norm / gram.diagonal().sqrt().clamp(min=1e-30)).clamp(max=1.0)
    gram = factors[:, None] * gram * factors / channel.noise_deviation**2
    values, vectors = torch.linalg.eigh(gram)
    noise = torch.randn((draws, len(values)), generator=generator, dtype=torch.float64)
    products = (noise * values.clamp(min=0).sqrt()) @ vectors.T
    scores = gram[index] - gram.diagonal() / 2 + products
    others = torch.cat([scores[:, :index], scores[:, index + 1 :]], 1)
    return float((scores[:, index] > others.amax(1)).double().mean()) if len(candidates) > 1 else 1.0


def link_rank(scores: Tensor, index: int) -> int:
    """Return the rank of candidate ``index``, 1 is best; on ties the worst it could be."""
    return int((scores >= scores[index]).sum()) if bool(scores.isfinite().all()) else len(scores)


def _shapes(update: Update) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in update.tensors.items()}


def _flat(tensors: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in names]).double()


def _of_layers(update: Update, channel: Channel) -> dict[str, Tensor]:
    """Return the tensors, clipped one by one where the channel says so."""
    if not channel.layerwise:
        return update.tensors
    samples = channel.clipped({name: tensor[None, None] for name, tensor in update.tensors.items()})
    return {name: sample[0, 0] for name, sample in samples.items()}


def _score(sent: Tensor, hypotheses: list[Tensor], channel: Channel, names: list[str]) -> Tensor:
    if channel.noise_deviation is not None:
        return _likelihood(sent, hypotheses, channel.clip_norm, channel.noise_deviation)
    if channel.masks is not None:
        mask = _flat(channel.masks, names)
        hypotheses = [hypothesis * mask for hypothesis in hypotheses]
    return _cosine(sent, hypotheses)


def _by_scales(scales: Scales, hypotheses: Sequence[Update]) -> float:
    """Return how near the scales of the nearest hypothesis are to those that arrived; 0 is nearest."""
    return -min(scales.distance(each.tensors) for each in hypotheses)


def _cosine(sent: Tensor, hypotheses: list[Tensor]) -> Tensor:
    """Return the largest cosine of a hypothesis with the update."""
    norms = [(sent.norm() * hypothesis.norm()).clamp(min=1e-30) for hypothesis in hypotheses]
    cosines = [sent @ hypothesis / norm for hypothesis, norm in zip(hypotheses, norms, strict=True)]
    return torch.stack(cosines).max()


def _gram(updates: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the scalar products (N, N) of updates, float64; a part at a time is held in that precision."""
    gram = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in updates[0]:
        for part in zip(*(torch.split(each[name].flatten(), _PART) for each in updates), strict=True):
            rows = torch.stack(part).double()
            gram += rows @ rows.T
    return gram


def _clipped(gradient: Tensor, norm: float) -> Tensor:
    factor: Tensor = (norm / gradient.norm().clamp(min=1e-30)).clamp(max=1.0)
    return gradient * factor


def _likelihood(sent: Tensor, hypotheses: list[Tensor], clip_norm: float, deviation: float) -> Tensor:
    """Return the logarithm of the summed likelihoods under Gaussian noise, up to a constant."""
    deviation = max(deviation, 1e-12)  # without noise the nearest wins
    clipped = [_clipped(hypothesis, clip_norm) for hypothesis in hypotheses]
    # |sent|^2, the same for all, is left out: beside heavy noise it would drown the difference.
    logarithms = [(sent @ h - h @ h / 2) / deviation**2 for h in clipped]
    return torch.stack(logarithms).logsumexp(0)
