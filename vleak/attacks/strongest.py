"""Strongest attack: the attacker tries what may work on public clips, and runs what worked best."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from vleak.attacks.base import Attack, Hooks, Knowledge, Observation, Reconstruction, Work, suited
from vleak.attacks.cache import Cache, digest_of_model
from vleak.attacks.expectation import prior_answer
from vleak.attacks.flags import NO_EVIDENCE
from vleak.attacks.learned import Inverter
from vleak.attacks.learned.rehearsal import StoppedError
from vleak.attacks.matching import Matching
from vleak.attacks.retrieval import Retrieval
from vleak.attacks.simulation import known_channel
from vleak.attacks.trials import Evidence, evidence_of, noise_is_scaled, trials
from vleak.attacks.work import knowledge_of_defense
from vleak.errors import InputError
from vleak.federated import Channel
from vleak.seeds import tensor_digest

__all__ = ["Strongest"]

_TRIALS = 2
"""Public clips that are tried at most."""
_DESCENTS = 4
"""Attacks that descend among those that are tried."""


class Strongest(Attack):
    """Choice among the attacks by what they rebuild of public clips behind the same client and defense.

    What is tried: `matching` with its total variation and with a tenth of it, `matching` with a Gaussian
    prior in frequency space, weak and strong, `inverter` and `retrieval`. The attacker sends himself public
    clips through the client and the defense, attacks them without the other clips of their videos, and runs
    what is ahead on average. How far its answer is to be followed, between the answer without the update and
    its own, is chosen in the same trials; where none of the attacks gains anything there, the answer without
    the update is given, and a flag says so. The truth is never asked.

    The trials are of one model and defense, and are kept in the process for all clips. Where nothing can be
    tried (features, reference frames, too few public clips), it is `matching`.
    """

    name: ClassVar[str] = "strongest"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})
    local_steps: ClassVar[bool] = True
    several_rounds: ClassVar[bool] = True

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        budget: int = 800,
        engine: Literal["native", "reference"] = "native",
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations, restarts, engine: as of `Matching`, for the attack that is chosen.
            budget: iterations of all descents in the trials of one model and defense together. A smaller one
                leaves shorter descents, then fewer trials.

        Raises:
            InputError: fewer than one iteration or restart, or a budget of less than one iteration for every
                descent that is tried.
        """
        if iterations < 1 or restarts < 1:
            raise InputError(
                f"strongest: expected at least 1 iteration and 1 restart, got {iterations} and {restarts}"
            )
        self.iterations, self.restarts, self.budget, self.engine = iterations, restarts, budget, engine
        if budget < _DESCENTS * restarts:
            raise InputError(
                f"strongest: budget is {budget}, expected at least {_DESCENTS * restarts}, one iteration for "
                "each descent that is tried"
            )

    def prepare(
        self, observation: Observation, generator: torch.Generator, hooks: Hooks
    ) -> Work | Reconstruction:
        """Return the work of the attack that did best in the trials, or the answer without the update."""
        channel, evidence = known_channel(observation), tuple[Evidence, ...]()
        if not observation.knowledge.of_features and observation.knowledge.references is None:
            key = self._key(observation, channel)
            try:
                evidence = _kept.get(key, lambda: self._tried(observation, channel, hooks))
            except StoppedError:
                return _without_update(observation, channel, ())
        best = max(evidence, key=lambda each: each.gain, default=None)
        if best is None or not best.gains:
            best = None
        elif best.gain <= 0:
            return _without_update(observation, channel, evidence)
        chosen = _Chosen(self._attacks(self.iterations)[best.name if best else "matching"], best, evidence,
                         observation.knowledge)  # fmt: skip
        return chosen.outcome(chosen.attack.prepare(suited(chosen.attack, observation), generator, hooks))

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return what the chosen attack makes of its work."""
        chosen = work.state
        assert isinstance(chosen, _Chosen)
        return chosen.outcome(chosen.attack.finish(replace(work, state=chosen.state), hooks))

    def _attacks(self, iterations: int) -> dict[str, Attack]:
        """Return the attacks that are tried, by the text that stands for them on the command line."""
        matching = partial(Matching, iterations=iterations, restarts=self.restarts, engine=self.engine)
        return {
            "matching": matching(),
            "matching:spatial=0.003,temporal=0.009": matching(spatial=0.003, temporal=0.009),
            "matching:regulariser=spectrum": matching(regulariser="spectrum"),
            "matching:regulariser=spectrum,noise=10": matching(regulariser="spectrum", noise=10.0),
            "inverter": Inverter(),
            "retrieval": Retrieval(),
        }

    def _cheaper(self, iterations: int) -> dict[str, Attack]:
        """Return the attacks as they are tried: those that learn do so from fewer messages."""
        return self._attacks(iterations) | {
            "inverter": Inverter(copies=3, rehearsals=6),
            "retrieval": Retrieval(rehearsals=6),
        }

    def _tried(self, observation: Observation, channel: Channel | None, hooks: Hooks) -> tuple[Evidence, ...]:
        """Return what every attack gets out of the trials that the budget allows."""
        descents = _DESCENTS * self.restarts
        iterations = max(1, min(self.iterations, self.budget // (descents * _TRIALS)))
        count = min(_TRIALS, self.budget // (descents * iterations))
        tried = trials(observation, channel, count)
        return tuple(evidence_of(self._cheaper(iterations), tried, hooks)) if tried else ()

    def _key(self, observation: Observation, channel: Channel | None) -> Hashable:
        """Return what the trials depend on."""
        first = observation.earlier[0] if observation.earlier else observation
        facts, public, groups = (
            first.update.facts,
            first.knowledge.public_clips,
            first.knowledge.public_groups,
        )
        scaled = noise_is_scaled(channel, first.knowledge.simulate)
        return (
            digest_of_model(first.model), None if public is None else tensor_digest(public),
            facts.loss, facts.mode, facts.batch_size, facts.local, tuple(first.update.tensors),
            None if channel is None else (channel.key, channel.clip_norm, channel.kept_fraction),
            None if channel is None or not scaled else channel.noise_energy,
            None if groups is None else tensor_digest(groups), first.knowledge.labels_inferred,
            first.knowledge.simulate is None, repr(self),
        )  # fmt: skip


@dataclass(frozen=True)
class _Chosen:
    """The attack that runs, and why.

    Attributes:
        attack: as it runs.
        best: what it got out of the trials; None without trials.
        evidence: what all attacks got out of them.
        knowledge: of the attacker.
        state: that of its work.
    """

    attack: Attack
    best: Evidence | None
    evidence: tuple[Evidence, ...]
    knowledge: Knowledge
    state: object = None

    def outcome(self, outcome: Work | Reconstruction) -> Work | Reconstruction:
        """Return further work, or the answer as far as the trials speak for it."""
        if isinstance(outcome, Work):
            return replace(outcome, state=replace(self, state=outcome.state))
        if self.best is None:
            return replace(outcome, method="matching")
        clips = self.best.shared(outcome.clips, self.knowledge)
        return replace(outcome, clips=clips, method=self.best.name, evidence=_gains(self.evidence))


def _without_update(
    observation: Observation, channel: Channel | None, evidence: Sequence[Evidence]
) -> Reconstruction:
    """Return the answer without the update: no attack gained anything in the trials, or they were stopped."""
    return Reconstruction(
        clips=prior_answer(observation.knowledge).clone(),
        labels=observation.labels,
        defense_knowledge=knowledge_of_defense(channel),
        method="baseline",
        evidence=_gains(evidence),
        flags=(NO_EVIDENCE,) if evidence else (),
    )


def _gains(evidence: Sequence[Evidence]) -> tuple[tuple[str, float], ...]:
    """Return by attack the mean gain in the trials, in dB, of those that did not fail."""
    return tuple((each.name, round(each.gain, 2)) for each in evidence if each.gains)


_kept: Cache[tuple[Evidence, ...]] = Cache(64)
