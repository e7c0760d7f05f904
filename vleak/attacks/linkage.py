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


def link_scores(update: Update, candidates: Sequence[Update], knowledge: Knowledge) -> Tensor:
    """Score every candidate by how well the update that it would have caused agrees with the one that came.

    Under DP with a known clipping norm this is the Gaussian log-likelihood, with which choosing the largest
    is the best that anyone can do (Neyman-Pearson); otherwise it is the cosine, over the surviving entries
    where the update was pruned.

    Args:
        update: what arrived.
        candidates: N undefended updates of one clip each, computed by the attacker on the same model.
        knowledge: names the defense, or does not.

    Returns:
        (N,) float64, larger is likelier.

    Raises:
        InputError: there is no candidate, or one is an update of another model.
    """
    if not candidates:
        raise InputError("linkage: expected at least one candidate, got none; give the clips to choose from")
    names = list(update.tensors)
    for index, candidate in enumerate(candidates):
        if _shapes(candidate) != _shapes(update):
            raise InputError(
                f"linkage: candidate {index} has other tensors than the update; compute both on one model"
            )
    sent = _flat(update, names)
    score = _SCORES.get(knowledge.defense or "", _cosine)
    return torch.stack(
        [score(sent, _flat(candidate, names), knowledge.defense_settings) for candidate in candidates]
    )


def link_rank(scores: Tensor, index: int) -> int:
    """Return the rank of candidate ``index``, 1 is best; on ties the worst it could be."""
    return int((scores >= scores[index]).sum()) if bool(scores.isfinite().all()) else len(scores)


def _shapes(update: Update) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in update.tensors.items()}


def _flat(update: Update, names: list[str]) -> Tensor:
    return torch.cat([update.tensors[name].flatten() for name in names]).double()


def _cosine(sent: Tensor, candidate: Tensor, _: dict[str, Any]) -> Tensor:
    cosine: Tensor = sent @ candidate / (sent.norm() * candidate.norm()).clamp(min=1e-30)
    return cosine


def _likelihood(sent: Tensor, candidate: Tensor, settings: dict[str, Any]) -> Tensor:
    clipped = candidate * (settings["max_grad_norm"] / candidate.norm().clamp(min=1e-30)).clamp(max=1.0)
    likelihood: Tensor = -(sent - clipped).square().sum()
    return likelihood


def _surviving(sent: Tensor, candidate: Tensor, settings: dict[str, Any]) -> Tensor:
    return _cosine(sent, candidate * (sent != 0), settings)


_SCORES: dict[str, Callable[[Tensor, Tensor, dict[str, Any]], Tensor]] = {
    "dp": _likelihood,
    "prune": _surviving,
}
