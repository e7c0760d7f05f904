"""Stacking: a weighted mean of the answers of attacks, with weights fitted on trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from vleak.attacks.expectation import prior_answer
from vleak.attacks.knowledge import Knowledge
from vleak.attacks.trials import Evidence, Trial, aligned

__all__ = ["Stack", "best_weights", "stacked"]

_MEMBERS = 3
"""Attacks in a stack at most: each costs its time on every private clip."""
_LEAST = 0.1
"""Weight below which an attack is not worth its time."""
_TOLL = 0.005
"""Part of the error of the answer without the update that each attack beside the first has to save; set with
`_SHRINKAGE`, among 0.002, 0.005 and 0.01. Where the answer is near, a second attack is not worth its time."""
_SHRINKAGE = 0.2
"""Pull of the weights towards the best attack alone, in units of that attack's error: two trials tell a
weight badly. Of 0, 0.1, 0.2, 0.5 and 1 the largest that loses little of what stacking gains, on synthetic
clips of seed 1000, which no default run draws."""


@dataclass(frozen=True)
class Stack:
    """Weighted mean of answers and of the answer without the update, which has what is left of the weight.

    Attributes:
        weights: by attack its weight, above 0, the heaviest first; they sum to at most 1.
        gain: mean gain over the answer without the update in the trials that it was fitted on, in dB.
    """

    weights: tuple[tuple[str, float], ...]
    gain: float

    @property
    def name(self) -> str:
        """Names of the attacks; of several with their weights, such as "0.75 inverter + 0.25 matching"."""
        if len(self.weights) == 1:
            return self.weights[0][0]
        return " + ".join(f"{weight:.2f} {name}" for name, weight in self.weights)

    def answer(self, answers: Sequence[Tensor], knowledge: Knowledge) -> Tensor:
        """Return the mean (B, *clip_shape) of one answer (B, *clip_shape) an attack."""
        if self.weights[0][1] == 1.0:  # to the last bit
            return answers[0]
        prior = prior_answer(knowledge)
        first = answers[0].to(prior)
        steps = [
            weight * (aligned(answer.to(prior), first) - prior)
            for answer, (_, weight) in zip(answers, self.weights, strict=True)
        ]
        return prior + torch.stack(steps).sum(0)


def stacked(evidence: Sequence[Evidence], tried: Sequence[Trial]) -> Stack | None:
    """Return the stack of least squared error over the trials, drawn towards the best attack alone.

    Stacked regressions (Breiman, Machine Learning 24, 1996): weights of at least 0, as the answers of
    attacks that work err alike. Every trial counts by its error relative to the answer without the update.

    Args:
        evidence: of the attacks.
        tried: what they were tried on, at least one.

    Returns:
        the stack, of at most three attacks; None where no attack gained anything.
    """
    best = max(evidence, key=lambda each: each.gain, default=None)
    if best is None or best.gain <= 0:
        return None
    sound = [each for each in evidence if each.gains]
    gram, along = _products(sound, tried)
    alone = torch.tensor([each.share if each is best else 0.0 for each in sound], dtype=torch.float64)
    left = max(float(alone @ gram @ alone - 2 * along @ alone) / len(tried) + 1, 0.0)
    pull = _SHRINKAGE * left * gram.diagonal()
    weights = best_weights(gram + torch.diag(pull), along + pull * alone, _TOLL * len(tried) / 2)
    weights = weights if bool(weights.any()) else alone
    order = [place for place in weights.argsort(descending=True).tolist() if weights[place] > 0]
    stack = Stack(tuple((sound[place].name, float(weights[place])) for place in order), 0.0)
    gains = [
        trial.gain(
            stack.answer([sound[place].answers[index] for place in order], trial.observation.knowledge)
        )
        for index, trial in enumerate(tried)
    ]
    return replace(stack, gain=sum(gains) / len(gains))


def _products(sound: Sequence[Evidence], tried: Sequence[Trial]) -> tuple[Tensor, Tensor]:
    """Return the inner products (n, n) of the answers, and (n,) with what was sent, less what is expected."""
    gram = torch.zeros(len(sound), len(sound), dtype=torch.float64)
    along = torch.zeros(len(sound), dtype=torch.float64)
    for index, trial in enumerate(tried):
        prior = prior_answer(trial.observation.knowledge)
        wanted = (trial.clips - prior).double().flatten()
        steps = torch.stack([(each.answers[index] - prior).double().flatten() for each in sound])
        energy = wanted.square().sum().clamp(min=1e-12)
        gram += steps @ steps.T / energy
        along += steps @ wanted / energy
    return gram, along


def best_weights(gram: Tensor, along: Tensor, toll: float = 0.0) -> Tensor:
    """Return the weights w (n,) of least w' gram w / 2 - along' w + toll (|{w > 0}| - 1) among those allowed.

    Allowed are at most three above 0, which sum to at most 1 and, where they are several, are no trifles. So
    few are found exactly, by trying every choice of them.

    Args:
        gram: (n, n) float64, inner products of the answers. along: (n,), of the answers with what is wanted.
        toll: what each answer above the first has to save.
    """
    best, least = torch.zeros_like(along), 0.0
    for chosen in _choices(len(along)):
        weights = _within_simplex(gram[chosen][:, chosen], along[chosen])
        if float(weights.min()) <= (_LEAST if len(chosen) > 1 else 0.0):
            continue
        value = float(weights @ gram[chosen][:, chosen] @ weights / 2 - along[chosen] @ weights)
        value += toll * (len(chosen) - 1)
        if value < least:
            best, least = torch.zeros_like(along).index_put((torch.tensor(chosen),), weights), value
    return best


def _choices(count: int) -> Iterator[list[int]]:
    for size in range(1, min(count, _MEMBERS) + 1):
        yield from map(list, combinations(range(count), size))


def _within_simplex(gram: Tensor, along: Tensor) -> Tensor:
    """Return the weights of least error, or, where they sum to more than 1, those of sum 1."""
    # Answers that are equal leave open which of them counts.
    gram = gram + 1e-9 * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    free, ones = torch.linalg.solve(gram, along), torch.linalg.solve(gram, torch.ones_like(along))
    excess = (free.sum() - 1).clamp(min=0)
    weights: Tensor = free - excess / ones.sum() * ones
    return weights
