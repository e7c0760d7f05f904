"""Simulation of a defense on public clips, by an attacker who knows its code and is told no channel."""

from __future__ import annotations

import torch
from torch import Tensor

from vleak.attacks.knowledge import Knowledge, Simulate
from vleak.attacks.observation import Observation
from vleak.federated import LOSSES, Channel
from vleak.federated.channel import surviving_entries
from vleak.federated.gradients import mean_gradient
from vleak.seeds import generator, tensor_digest

__all__ = ["known_channel", "simulated_channel"]

_REHEARSALS = 8
"""Batches of public clips that are sent through the defense; the noise energy is a mean over them."""


def known_channel(observation: Observation) -> Channel | None:
    """Return what the update measures as far as the attacker knows: stated, simulated, or None.

    Raises:
        InputError: the defense has to be simulated, and there are no labels.
    """
    if observation.channel is not None:
        return observation.channel
    simulate = observation.knowledge.simulate
    return None if simulate is None else simulated_channel(observation, simulate)


def simulated_channel(observation: Observation, simulate: Simulate) -> Channel:
    """Estimate a channel from what the defense does to public clips.

    An honest gradient and the message of the same clips are compared. Where the defense makes zeros of
    entries that are none, the zeros of the update carry no measurement. The noise is what is left of the
    message, in the entries that survive, after the best multiple of the honest gradient is taken out: a
    defense that only scales the gradient adds none.

    Args:
        observation: with labels; its model in the mode that the client used.
        simulate: `Knowledge.simulate`.

    Returns:
        a channel with masks, noise energy and a key of what was sent.
    """
    loss, labels = LOSSES[observation.update.facts.loss], observation.labels
    weight = next(observation.model.parameters())
    zeroes, energies, messages = False, [], list[Tensor]()
    for index, clips in enumerate(_rehearsed_batches(observation.knowledge)):
        sent = simulate(clips, labels, generator("simulate", index)).tensors
        honest = mean_gradient(observation.model, loss, clips.to(weight), labels.to(weight.device))
        # Of a model that is trained in part, the message has that part.
        flat = torch.cat([tensor.flatten().double() for tensor in sent.values()])
        plain = torch.cat([honest[name].flatten().double().cpu() for name in sent])
        kept = flat != 0
        zeroes = zeroes or bool((~kept & (plain != 0)).any())
        energies.append(_noise(flat[kept], plain[kept]))
        messages.append(flat)
    return Channel(
        masks=surviving_entries(observation.update) if zeroes else None,
        noise_energy=sum(energies) / len(energies),
        key=("simulated", tensor_digest(*messages)),
        source="simulated",
    )


def _rehearsed_batches(knowledge: Knowledge) -> list[Tensor]:
    """Return up to 8 batches (B, *clip_shape) of public clips; one of random numbers where there are none."""
    public = knowledge.public_clips
    if public is None or not len(public):
        return [torch.rand(knowledge.batch_shape, generator=generator("simulate"))]
    count, size = min(len(public), _REHEARSALS), knowledge.batch_size
    slots = (torch.arange(count)[:, None] + torch.arange(size)) % len(public)
    return list(public[slots])


def _noise(sent: Tensor, honest: Tensor) -> float:
    """Return the energy of a message (entries,) that no multiple of the honest gradient explains."""
    gain = sent @ honest / honest.square().sum().clamp(min=1e-30)
    return float((sent - gain * honest).square().sum())
