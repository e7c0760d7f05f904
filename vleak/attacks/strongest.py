"""Strongest attack: the attacker tries what may work on public clips, and runs what worked best together."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from vleak.attacks.analytic import Tokens
from vleak.attacks.base import Attack, Hooks, Observation, Reconstruction, Work, suited
from vleak.attacks.cache import Cache, digest_of_model
from vleak.attacks.cost import slowness
from vleak.attacks.expectation import prior_answer
from vleak.attacks.flags import NO_EVIDENCE
from vleak.attacks.learned import Inverter
from vleak.attacks.learned.rehearsal import StoppedError
from vleak.attacks.matching import Matching
from vleak.attacks.refinement import Refinement
from vleak.attacks.retrieval import Retrieval
from vleak.attacks.simulation import known_channel
from vleak.attacks.stacking import Stack, stacked
from vleak.attacks.trials import evidence_of, noise_is_scaled, trials
from vleak.attacks.work import knowledge_of_defense
from vleak.defaults import BUDGET
from vleak.errors import InputError
from vleak.federated import Channel
from vleak.seeds import tensor_digest

__all__ = ["Strongest"]

_TRIALS = 2
"""Public clips that are tried at most."""
_DESCENTS = 5
"""Attacks that descend among those that are tried."""
_LEAST = 20
"""Iterations of a descent on the slowest networks, of 150 on small ones."""


class Strongest(Attack):
    """Weighted mean of the attacks that rebuild most of public clips behind the same client and defense.

    What is tried: `matching` with its total variation and with a tenth of it, `matching` with a Gaussian
    prior in frequency space, weak, and strong with balanced layers, `refinement`, `inverter`, `retrieval`
    and, of transformers, `tokens`. The attacker sends himself public clips through the client
    and the defense, and attacks them without the other clips of their videos. The weights of up to three
    answers, and of the answer without the update, are fitted there (`vleak.attacks.stacking`); where none
    of the attacks gains anything, the answer without the update is given, and a flag says so. The truth is
    never asked.

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
        budget: int = BUDGET,
        engine: Literal["native", "reference"] = "native",
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations, restarts, engine: as of `Matching`, for what is chosen. A network of more than two
                billion floating-point operations a pass has fewer iterations in proportion, at least 20, and
                `inverter` fewer copies.
            budget: iterations of all descents in the trials of one model and defense together, fewer
                likewise. A smaller one leaves shorter descents, then fewer trials.

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
        """Return the work of what did best in the trials, or the answer without the update."""
        channel, choice, slow = known_channel(observation), _UNTRIED, 1.0
        if not observation.knowledge.of_features:
            slow = slowness(observation)
            if observation.knowledge.references is None:
                key = self._key(observation, channel)
                try:
                    choice = _kept.get(key, lambda: self._tried(observation, channel, slow, hooks))
                except StoppedError:
                    return _without_update(observation, channel, ())
        if choice.stack is None:
            return _without_update(observation, channel, choice.gains)
        running = _Running(choice.stack, choice.gains, observation, generator, slow)
        return self._continued(running, self._begun(running, hooks), hooks)

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return what the attack that ran makes of its work, or the work of the next one."""
        running = work.state
        assert isinstance(running, _Running)
        outcome = self._attack(running).finish(replace(work, state=running.state), hooks)
        return self._continued(running, outcome, hooks)

    def _attack(self, running: _Running) -> Attack:
        attacks = self._attacks(self._iterations(running.slow), running.slow)
        return attacks[running.stack.weights[len(running.answers)][0]]

    def _begun(self, running: _Running, hooks: Hooks) -> Work | Reconstruction:
        """Return what the next attack of the stack begins with."""
        attack = self._attack(running)
        return attack.prepare(suited(attack, running.observation), running.generator, hooks)

    def _continued(
        self, running: _Running, outcome: Work | Reconstruction, hooks: Hooks
    ) -> Work | Reconstruction:
        """Return work of an attack of the stack, or the answer once all of them have given theirs."""
        while isinstance(outcome, Reconstruction):
            running = replace(running, answers=(*running.answers, outcome))
            if len(running.answers) == len(running.stack.weights):
                return running.answer()
            outcome = self._begun(running, hooks)
        return replace(outcome, state=replace(running, state=outcome.state))

    def _iterations(self, slow: float) -> int:
        """Return the iterations of a descent on a network that is so slow."""
        return max(min(self.iterations, _LEAST), round(self.iterations / slow))

    def _attacks(self, iterations: int, slow: float) -> dict[str, Attack]:
        """Return the attacks that are tried, by the text that stands for them on the command line."""
        matching = partial(Matching, iterations=iterations, restarts=self.restarts, engine=self.engine)
        return {
            "matching": matching(),
            "matching:spatial=0.003,temporal=0.009": matching(spatial=0.003, temporal=0.009),
            "matching:regulariser=spectrum": matching(regulariser="spectrum"),
            "matching:regulariser=spectrum,noise=10,layers=balanced": matching(
                regulariser="spectrum", noise=10.0, layers="balanced"
            ),
            "refinement": Refinement(iterations=iterations, restarts=self.restarts, engine=self.engine),
            "inverter": Inverter.afforded(slow),
            "retrieval": Retrieval(),
            "tokens": Tokens(),  # fails at once where the model is no transformer
        }

    def _tried(self, observation: Observation, channel: Channel | None, slow: float, hooks: Hooks) -> _Choice:
        """Return what is best in the trials that the budget allows on a network that is so slow."""
        descents = _DESCENTS * self.restarts
        budget = max(descents, round(self.budget / slow))
        iterations = max(1, min(self._iterations(slow), budget // (descents * _TRIALS)))
        count = min(_TRIALS, budget // (descents * iterations))
        tried = trials(observation, channel, count)
        evidence = (
            evidence_of(
                self._attacks(iterations, slow) | {"retrieval": Retrieval(rehearsals=6)}, tried, hooks
            )
            if tried
            else []
        )
        if not any(each.gains for each in evidence):
            return _UNTRIED
        stack = stacked(evidence, tried)
        gains = {each.name: each.gain for each in evidence if each.gains}
        if stack is not None:
            gains[stack.name] = stack.gain
        return _Choice(stack, tuple((name, round(gain, 2)) for name, gain in gains.items()))

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
class _Choice:
    """What is best in the trials of one model and defense.

    Attributes:
        stack: what runs; None where no attack gained anything.
        gains: by attack the mean gain in dB, of those that did not fail.
    """

    stack: Stack | None
    gains: tuple[tuple[str, float], ...] = ()


_UNTRIED = _Choice(Stack((("matching", 1.0),), 0.0))


@dataclass(frozen=True)
class _Running:
    """A stack whose attacks run one after the other.

    Attributes:
        stack: the attacks. gains: of the choice.
        observation, generator: as of `Attack.prepare`.
        slow: how slow the network is, see `slowness`.
        answers: of the attacks that have run.
        state: that of the work of the one that runs.
    """

    stack: Stack
    gains: tuple[tuple[str, float], ...]
    observation: Observation
    generator: torch.Generator
    slow: float
    answers: tuple[Reconstruction, ...] = ()
    state: object = None

    def answer(self) -> Reconstruction:
        """Return the weighted mean; what else there is to say is that of the attack that counts most."""
        engines = [answer.engine for answer in self.answers if answer.engine != "none"]
        return replace(
            self.answers[0],
            clips=self.stack.answer([answer.clips for answer in self.answers], self.observation.knowledge),
            engine=engines[0] if engines else "none",
            iterations=sum(answer.iterations for answer in self.answers),
            restarts=sum(answer.restarts for answer in self.answers),
            method=self.stack.name,
            evidence=self.gains,
        )


def _without_update(
    observation: Observation, channel: Channel | None, gains: tuple[tuple[str, float], ...]
) -> Reconstruction:
    """Return the answer without the update: no attack gained anything in the trials, or they were stopped."""
    return Reconstruction(
        clips=prior_answer(observation.knowledge).clone(),
        labels=observation.labels,
        defense_knowledge=knowledge_of_defense(channel),
        method="baseline",
        evidence=gains,
        flags=(NO_EVIDENCE,) if gains else (),
    )


_kept: Cache[_Choice] = Cache(64)
