"""Channels of sums: what a server that has the mean over clients knows of each of them."""

from __future__ import annotations

import math
from dataclasses import replace

from vleak.federated import Channel, Defense, Update, surviving_entries

__all__ = ["channel_of_sum"]


def channel_of_sum(each: Defense, update: Update, clients: int) -> Channel | None:
    """Return the channel of the mean over clients; None where that measures no gradient.

    Of updates whose positions travel it says which client sent what.

    Args:
        each: defense of every client.
        update: the mean of what they sent.
        clients: how many, at least 2.
    """
    local, facts = update.facts.local, update.facts
    if local is not None and local.steps > 1:
        return None
    if update.senders:
        return _by_senders(each, update, clients)
    own = each.channel(replace(update, facts=replace(facts, batch_size=facts.batch_size // clients)))
    if own is None or own.masks or own.transform or own.bases or own.kept_fraction < 1:
        return None
    deviation = None if own.noise_deviation is None else own.noise_deviation * math.sqrt(clients)
    return replace(
        own,
        noise_energy=own.noise_energy / clients,
        noise_deviation=deviation,
        scales=None,
        key=("sum", clients, each.name, own.key),
    )


def _by_senders(each: Defense, update: Update, clients: int) -> Channel | None:
    """Return the channel of a mean over clients of whom the server sees who sent which entry.

    The noise of what a client sent is as dense as in the entries that it alone sent.
    """
    noise, own = 0.0, Channel()
    for alone, sent in zip(update.sent_alone(), update.senders, strict=True):
        stated = each.channel(alone)
        if stated is None or stated.bases or stated.random_behind:
            return None
        own, counts = (
            stated,
            [sum(int(t.count_nonzero()) for t in group.values()) for group in (sent, alone.tensors)],
        )
        noise += stated.noise_energy * counts[0] / max(counts[1], 1) / clients**2
    return replace(
        own,
        masks=surviving_entries(update),
        noise_energy=noise,
        noise_deviation=None,
        kept_fraction=1.0,
        transform=None,
        scales=None,
        senders=update.senders,
        key=("senders", clients, each.name, own.key),
    )
