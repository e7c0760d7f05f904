"""Linkage of a cell: what the update itself tells about its clip, whatever an attack rebuilds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vleak.attacks import LINK_DRAWS, Observation, link_chance, link_rank, link_scores, simulated_channel
from vleak.federated import Channel, Client
from vleak.pipelines.honest import HonestUpdates
from vleak.seeds import generator

__all__ = ["Linkage", "link", "simulated"]


@dataclass(frozen=True)
class Linkage:
    """Linkage of a cell, as in `vleak.results.Scores`; all None where it was not measured."""

    linked: bool | None = None
    rank: int | None = None
    chance: float | None = None
    draws: int | None = None

    def scores(self) -> dict[str, object]:
        """Return it as fields of `vleak.results.Scores`."""
        return {
            "linked": self.linked,
            "link_rank": self.rank,
            "link_chance": self.chance,
            "link_draws": self.draws,
        }


def link(
    honest: HonestUpdates,
    observation: Observation,
    candidates: list[int],
    clip: int,
    *,
    label: int | None,
    alone: bool,
) -> Linkage:
    """Return the linkage of a clip among candidates.

    Args:
        honest: undefended updates of all clips.
        observation: of the attacker, with the channel that he knows.
        candidates: positions of at least two clips, ``clip`` among them.
        clip: that was sent.
        label: of it, if it is known.
        alone: whether it is alone in the only message.
    """
    hypotheses = honest.candidates(candidates, label)
    index, channel = candidates.index(clip), observation.channel or Channel()
    rank = link_rank(link_scores(observation, hypotheses), index) if hypotheses else None
    told = [honest.updates[candidate] for candidate in candidates]
    chance = link_chance(told, index, channel, generator("linkage", clip)) if alone else None
    return Linkage(None if rank is None else rank == 1, rank, chance, None if chance is None else LINK_DRAWS)


def simulated(client: Client, observation: Observation) -> Channel:
    """Return the channel of a defense that states none, as an attacker finds it who runs the client himself.

    Args:
        client: with the defense, and a model of its own.
        observation: of the attacker.
    """
    knowledge = observation.knowledge
    if knowledge.labels is None:  # of public clips, for which one label is as good as another
        knowledge = replace(knowledge, labels=torch.zeros(knowledge.batch_size, dtype=torch.int64))
    known = replace(observation, knowledge=replace(knowledge, simulate=client.update)).as_gradient()
    assert known.knowledge.simulate is not None
    return simulated_channel(known, known.knowledge.simulate)
