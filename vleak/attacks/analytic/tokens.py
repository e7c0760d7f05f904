"""Clips from the rank of a transformer's gradients: every tubelet solved for at its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.analytic.token_layer import TokenLayer, token_layer
from vleak.attacks.analytic.token_posterior import TokenPosterior
from vleak.attacks.base import Attack, Hooks, Observation, Reconstruction
from vleak.attacks.expectation import prior_answer
from vleak.attacks.simulation import known_channel
from vleak.attacks.work import knowledge_of_defense
from vleak.errors import CapabilityError
from vleak.federated import LOSSES, mean_gradient

__all__ = ["Tokens"]

_NOISES = tuple(10 ** (-quarter / 4) for quarter in range(-2, 26))
"""Deviations of the equations that are tried, in units of the prior's, falling."""
_ABOVE, _PATIENCE, _AS_GOOD = 2, 4, 2.0
"""Deviations that are tried above the likeliest one, and below the last that brought a nearer gradient; times
the smallest distance at which an answer is as good and one nearer to the prior is taken. Of 1, 1.5, 2 and 3
the best one on synthetic clips of seed 1000 and on surveillance videos together."""


class Tokens(Attack):
    """A transformer's clip, solved for tubelet by tubelet: no descent.

    The gradient of a linear layer is a sum of outer products, one a token: its row space has in it whatever
    the layer read (SPEAR, NeurIPS 2024, arXiv 2403.03945), and tells for each candidate whether it was read
    (DAGER, ICML 2024, arXiv 2405.15586). Here tokens are tubelets, candidates are continuous, and between the
    embedding and the first attention there is a layer norm alone: where a clip has fewer tokens than a token
    has numbers, equations that are linear in the pixels hold at each place (`TokenPosterior`). They are
    solved with a Gaussian prior that public clips tell. How exactly the equations hold, float32 and the
    defense decide; of several guesses the answer is the one whose gradient is nearest to the update, layer
    by layer.

    Adapters of low rank on the first attention do, where their rank is at least the number of tokens and
    training has moved them; the gradient of the embedding is not needed, but makes the answer far better.
    """

    name: ClassVar[str] = "tokens"

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return the best of the solutions.

        Raises:
            CapabilityError: several clips share the update, the model is no such transformer, or a clip has
                too many tokens for the rank of the gradient.
        """
        if observation.knowledge.batch_size > 1:
            raise CapabilityError(
                f"tokens: {observation.knowledge.batch_size} clips share the update, and their tokens at one "
                "place cannot be told apart; choose matching"
            )
        layer = token_layer(observation, generator)
        _check_rank(layer)
        posterior, channel = TokenPosterior(layer, observation.knowledge), known_channel(observation)
        masks = None if channel is None else channel.masks
        tried = list(_tried(observation, posterior, masks, hooks.stopped))
        least = min(distance for distance, _ in tried)
        objective, answer = next(each for each in tried if each[0] <= _AS_GOOD * least)
        return Reconstruction(
            clips=answer,
            labels=observation.labels,
            defense_knowledge=knowledge_of_defense(channel),
            objective=objective,
        )


def _tried(
    observation: Observation,
    posterior: TokenPosterior,
    masks: dict[str, Tensor] | None,
    stop: Callable[[], bool],
) -> Iterator[tuple[float, Tensor]]:
    """Yield answers (1, C, T, H, W), those near to the prior first, each after its gradient's distance.

    The first one is the answer without the update. The likeliest deviation is too large where the prior is
    another one than the clip's.
    """
    noises = [noise * posterior.unit for noise in _NOISES]
    likeliest = max(range(len(noises)), key=lambda index: posterior.evidence(noises[index]))
    expected = prior_answer(observation.knowledge)
    yield _distance(observation, expected, masks), expected
    least, since = math.inf, 0
    for noise in noises[max(likeliest - _ABOVE, 0) :]:
        if stop() or since == _PATIENCE:
            return
        clips = posterior.clip(noise)[None]
        distance = _distance(observation, clips, masks)
        since = 0 if distance < least else since + 1
        least = min(least, distance)
        yield distance, clips


def _check_rank(layer: TokenLayer) -> None:
    """Refuse a gradient that cannot have a part outside the tokens' space, or not all tokens in it.

    Raises:
        CapabilityError: it is such a one.
    """
    rank, width = layer.attention_gradient.shape
    if layer.rows >= width or layer.rows > rank:
        raise CapabilityError(
            f"tokens: a clip has {layer.rows} tokens, expected fewer than the {width} numbers of a token and "
            f"at most the {rank} rows of the first attention's gradient; choose matching"
        )


def _distance(observation: Observation, clips: Tensor, masks: dict[str, Tensor] | None) -> float:
    """Return 1 - cosine between the update and the gradient of clips (1, C, T, H, W), a mean over layers.

    A mean over layers, as the largest layers say least of the clip; those that got nothing are left out.
    """
    weight = next(observation.model.parameters())
    loss = LOSSES[observation.update.facts.loss]
    gradient = mean_gradient(observation.model, loss, clips.to(weight), observation.labels.to(weight.device))
    gaps = []
    for name, sent in observation.update.tensors.items():
        own, target = gradient[name].double().cpu(), sent.double().cpu()
        own = own if masks is None else own * masks[name].cpu()
        size = float(own.norm() * target.norm())
        if size > 0:
            gaps.append(1 - float((own * target).sum()) / size)
    return sum(gaps) / max(len(gaps), 1)
