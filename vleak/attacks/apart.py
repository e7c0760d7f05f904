"""Sums over clients taken apart: sparse updates show which entries each client sent, and it alone."""

from __future__ import annotations

from dataclasses import replace

from vleak.attacks.observation import Observation
from vleak.federated import Channel, surviving_entries

__all__ = ["taken_apart"]


def taken_apart(observation: Observation) -> list[Observation]:
    """Return an observation of each client of a sum, of the entries that it alone sent.

    The clips of the batch belong to the clients in order. An update that is no sum, or whose entries nobody
    tells apart, is returned as it is.
    """
    channel, knowledge = observation.channel, observation.knowledge
    if channel is None or not channel.senders:
        return [observation]
    found, size = [], knowledge.batch_size // len(channel.senders)
    for number, alone in enumerate(observation.update.sent_alone()):
        rows = slice(number * size, (number + 1) * size)
        own = replace(
            knowledge,
            batch_size=size,
            labels=None if knowledge.labels is None else knowledge.labels[rows],
            references=None if knowledge.references is None else knowledge.references[rows],
            simulate=None,
        )
        exact = Channel(masks=surviving_entries(alone), noise_energy=channel.noise_energy)
        found.append(replace(observation, update=alone, channel=exact, knowledge=own, earlier=()))
    return found
