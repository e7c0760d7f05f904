"""Learning to invert: a map from updates to clips, fitted by playing the client on public clips."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from vleak.attacks.base import Hooks, Observation, Reconstruction
from vleak.attacks.cache import Cache, digest_of_model
from vleak.attacks.learned.public import PublicClipsAttack, check_public
from vleak.attacks.learned.rehearsal import Rehearsal, Sender, StoppedError, rehearse
from vleak.attacks.learned.ridge import UpdateMap, fit
from vleak.attacks.simulation import known_channel
from vleak.attacks.target import refuse_partial
from vleak.attacks.work import knowledge_of_defense
from vleak.errors import InputError
from vleak.federated import Channel
from vleak.seeds import tensor_digest

__all__ = ["Inverter", "forget_maps"]


class Inverter(PublicClipsAttack):
    """Learning to Invert (Wu et al., UAI 2023, arXiv 2210.10880): a learned map from update to clip.

    The attacker plays the client on public clips, altered in many ways, under the private clip's label, and
    fits a linear map from what the defense would send to the clip, by kernel ridge regression in the space of
    updates: for some hundreds of samples it has a closed form, and its answer is the best linear estimate
    under the defense's noise. How much of the noise is in which tensor, and how strong the ridge has to be,
    is measured on public clips sent through the defense and left out of the fit, with all their versions.

    It never asks how well its answer explains the update, so it stays behind matching where little noise is,
    and is ahead of it where there is much. It does not iterate. Its answer does not depend on the generator:
    the map is the same for all clips behind one defense on one model, fitted once, kept in the process.
    """

    name: ClassVar[str] = "inverter"

    def __init__(self, *, copies: int = 8, rehearsals: int = 8) -> None:
        """Set the hyper-parameters.

        Args:
            copies: versions of every public clip to fit on, at least 1; memory and the time of the first
                answer grow with it.
            rehearsals: public clips sent through the defense to choose the ridge, at least 1; fewer where
                there are fewer.

        Raises:
            InputError: a number below 1.
        """
        if min(copies, rehearsals) < 1:
            raise InputError(
                f"inverter: expected at least 1 copy and 1 rehearsal, got {copies} and {rehearsals}"
            )
        self.copies, self.rehearsals = copies, rehearsals

    @classmethod
    def afforded(cls, slow: float) -> Inverter:
        """Return an inverter with fewer copies on a slow network, see `vleak.attacks.cost.slowness`."""
        return cls(copies=max(1, round(cls().copies / slow)))

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Reconstruction:
        """Return what the map makes of the update; the mean public clip where fitting it was stopped."""
        refuse_partial(observation, self.name)
        knowledge = observation.knowledge
        public = check_public(knowledge, self.name)
        channel = known_channel(observation)
        update_map = self._update_map(observation, channel, public, hooks)
        clips = public.mean(0).expand(knowledge.batch_shape).clone()
        return Reconstruction(
            clips=clips if update_map is None else update_map.answer(observation.update),
            labels=observation.labels,
            defense_knowledge=knowledge_of_defense(channel),
        )

    def _update_map(
        self, observation: Observation, channel: Channel | None, public: Tensor, hooks: Hooks
    ) -> UpdateMap | None:
        """Return the map for this model, defense and label; None where it was stopped."""
        facts = observation.update.facts
        channel = channel or Channel()
        sender = Sender(
            observation.model, facts.loss, facts.mode, observation.labels, channel,
            observation.knowledge.simulate,
        )  # fmt: skip
        key = (digest_of_model(observation.model), tensor_digest(public, observation.labels), facts.loss,
               facts.mode, self.copies)  # fmt: skip
        transform = None if channel.transform is None else channel.key
        deterministic = (channel.kept_fraction, channel.clip_norm, channel.layerwise, transform)
        try:
            rehearsal = _rehearsals.get(
                (key, deterministic), lambda: rehearse(sender, public, self.copies, hooks)
            )
            batch = public[torch.arange(len(observation.labels)) % len(public)]
            defense = sender.key(batch)
            return _maps.get(
                (key, deterministic, defense, self.rehearsals),
                lambda: fit(sender, rehearsal, self.rehearsals, hooks),
            )
        except StoppedError:
            return None


def forget_maps() -> None:
    """Forget every map that was fitted; the next answers fit theirs anew."""
    _rehearsals.clear()
    _maps.clear()


_rehearsals: Cache[Rehearsal] = Cache(16)
_maps: Cache[UpdateMap] = Cache(16)
