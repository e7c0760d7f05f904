"""Which of these clips was it? The attacker who holds the candidates and asks the update alone.

A defense may leave nothing to be seen and still tell who was filmed: rebuilding needs many bits, choosing
among N candidates needs log2(N). This is the sharpest attacker that an identification bound speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vleak.attacks.base import Knowledge
from vleak.errors import InputError
from vleak.federated import Update


def link_scores(update: Update, candidates: Sequence[Sequence[Update]], knowledge: Knowledge) -> Tensor:
    """Score every candidate by how well the update that it would have caused agrees with the one that came.

    The label of a clip is not seen in it, so a candidate is a list of hypotheses, one undefended update for
    every label that it may carry. Behind DP with known settings the score is the logarithm of the mean
    likelihood over them, and choosing the largest is the Bayes rule for equally likely candidates and labels:
    nobody does better. Otherwise it is the largest cosine, over the surviving entries of a pruned update.

    Args:
        update: what arrived, of a batch of one clip.
        candidates: N lists of undefended updates of one clip, computed by the attacker on the same model.
        knowledge: names the defense, or does not.

    Returns:
        (N,) float64, larger is likelier.

    Raises:
        InputError: there is no candidate, one is an update of another model, or the batch has several clips.
    """
    if not candidates or not all(candidates):
        raise InputError("linkage: expected at least one update a candidate; give the clips to choose from")
    if knowledge.batch_size != 1:
        raise InputError(f"linkage: expected an update of one clip, got a batch of {knowledge.batch_size}")
    names = list(update.tensors)
    for index, hypotheses in enumerate(candidates):
        if any(_shapes(hypothesis) != _shapes(update) for hypothesis in hypotheses):
            raise InputError(
                f"linkage: candidate {index} has other tensors than the update; compute both on one model"
            )
    sent = _flat(update, names)
    score = _SCORES.get(knowledge.defense or "", _cosine)
    # One candidate at a time: in float64 all of them would take twice the memory of the updates.
    flat = ([_flat(hypothesis, names) for hypothesis in hypotheses] for hypotheses in candidates)
    return torch.stack([score(sent, hypotheses, knowledge.defense_settings) for hypotheses in flat])


def link_rank(scores: Tensor, index: int) -> int:
    """Return the rank of candidate ``index``, 1 is best; on ties the worst it could be."""
    return int((scores >= scores[index]).sum()) if bool(scores.isfinite().all()) else len(scores)


def _shapes(update: Update) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in update.tensors.items()}


def _flat(update: Update, names: list[str]) -> Tensor:
    return torch.cat([update.tensors[name].flatten() for name in names]).double()


def _cosine(sent: Tensor, hypotheses: list[Tensor], _: dict[str, Any]) -> Tensor:
    cosines = [sent @ each / (sent.norm() * each.norm()).clamp(min=1e-30) for each in hypotheses]
    return torch.stack(cosines).max()


def _likelihood(sent: Tensor, hypotheses: list[Tensor], settings: dict[str, Any]) -> Tensor:
    norm = settings["max_grad_norm"]
    deviation = max(settings["noise_multiplier"] * norm, 1e-12)  # without noise the nearest wins
    clipped = [each * (norm / each.norm().clamp(min=1e-30)).clamp(max=1.0) for each in hypotheses]
    # |sent|^2, the same for all, is left out: beside heavy noise it would drown the difference.
    logarithms = [(sent @ each - each @ each / 2) / deviation**2 for each in clipped]
    return torch.stack(logarithms).logsumexp(0)


def _surviving(sent: Tensor, hypotheses: list[Tensor], settings: dict[str, Any]) -> Tensor:
    return _cosine(sent, [each * (sent != 0) for each in hypotheses], settings)


_SCORES: dict[str, Callable[[Tensor, list[Tensor], dict[str, Any]], Tensor]] = {
    "dp": _likelihood,
    "prune": _surviving,
}
