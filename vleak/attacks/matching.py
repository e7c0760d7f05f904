"""Gradient matching: find the clips whose gradient points where the update points."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vleak.attacks.adaptive import Channel, observe_channel
from vleak.attacks.base import Attack, Knowledge, Observation, Reconstruction
from vleak.attacks.feature_matching import FEATURE_PULL, FeatureSpace
from vleak.attacks.rows import NEAR_ZERO as NEAR_ZERO
from vleak.attacks.rows import centre, labels_of
from vleak.attacks.scene import (
    Before,
    empty_stage,
    expected_clips,
    expected_variance,
    moving_mask,
    still_scenes,
)
from vleak.descent.loop import Descent, DescentSettings, Problem, State
from vleak.descent.problem import Rule, Schedule
from vleak.descent.scheduler import run_descents
from vleak.errors import InputError, unknown_name
from vleak.federated import LOSSES

NOT_FALLING = "objective did not fall"
REFERENCE_USES = ("start", "prior", "mask")
STILL_UNIT = 0.5
"""How far a pixel may stray from the background where nothing seems to move, in units of where something
does; chosen among 0 (held), 0.25, 0.5 and 1 on synthetic clips of seed 1000, which no default run draws."""
STILL_FALLING = "still improving at the end"
NOT_A_NUMBER = "objective became NaN"


@dataclass(frozen=True)
class _Case:
    """What all descents of one attack share."""

    observation: Observation
    labels: Tensor
    channel: Channel
    progress: Callable[[int], None] | None
    stop: Callable[[], bool] | None

    @property
    def knowledge(self) -> Knowledge:
        return self.observation.knowledge


class Matching(Attack):
    """Gradient matching with total variation in space and time, told of the defense.

    Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053) for video, with Adam, from coarse
    clips to fine ones, a temporal term, and, where the attacker knows the defense, its likelihood and a
    prior (after Balunović et al., ICLR 2022, arXiv 2111.04706): see `vleak.attacks.adaptive`.
    """

    name: ClassVar[str] = "matching"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})
    told: ClassVar[bool] = True

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        distance: Literal["cosine", "l2"] = "cosine",
        rule: Rule = "adam",
        schedule: Schedule = "trapezoid",
        learning_rate: float = 0.05,
        warmup: int = 5,
        coarse: int = 2,
        patience: int = 0,
        tolerance: float = 1e-3,
        spatial: float = 0.03,
        temporal: float = 0.09,
        prior: float = 0.02,
        reference: Literal["start", "prior", "mask"] = "mask",
        engine: Literal["native", "inductor", "reference"] = "native",
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations: of each restart, at least 1.
            restarts: independent starts, at least 1; the smallest objective is the answer.
            distance: between gradients; for "l2" the priors are in units of the target's squared norm.
            rule, schedule, learning_rate, warmup, coarse, patience, tolerance: how each start descends, see
                `vleak.descent.loop.DescentSettings`.
            spatial: weight of anisotropic total variation within frames.
            temporal: weight of total variation between frames.
            prior: weight of half the mean squared distance to the mean public clip, where there is one; a
                little of it settles what trained models leave open, such as contrast.
            reference: what is made of reference frames, where the attacker holds any. "start": the descent
                starts from their background. "prior": besides, total variation and pull are of the difference
                from it, so that the background's own texture costs nothing. "mask": as "prior" for half of
                the iterations; in the other half what does not differ from the background by then pays more
                for doing so, and where something moves the background's texture is taken out.
            engine: which loop runs, see `vleak.descent.loop`.

        Raises:
            InputError: fewer than one iteration or restart, or another use of reference frames.
        """
        if reference not in REFERENCE_USES:
            raise unknown_name("reference", reference, REFERENCE_USES)
        if iterations < 1 or restarts < 1:
            raise InputError(
                f"matching: expected at least 1 iteration and 1 restart, got {iterations} and {restarts}"
            )
        self.iterations, self.restarts = iterations, restarts
        self.distance, self.rule, self.schedule = distance, rule, schedule
        self.warmup, self.coarse, self.patience, self.tolerance = warmup, coarse, patience, tolerance
        self.learning_rate, self.spatial, self.temporal, self.prior = learning_rate, spatial, temporal, prior
        self.reference, self.engine = reference, engine

    def _reconstruct(
        self,
        observation: Observation,
        generator: torch.Generator,
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Reconstruction:
        mode = observation.update.facts.mode
        observation = replace(observation, model=_in_mode(observation.model, mode))
        knowledge = observation.knowledge
        labels = labels_of(observation)
        channel = observe_channel(observation.update, knowledge) if self.told else Channel()
        if not any(bool(t.any()) for t in observation.update.tensors.values()):
            clips = (_expected_features if knowledge.of_features else _centre)(knowledge).clone()
            return Reconstruction(clips=clips, labels=labels, adaptive=channel.adaptive, flags=(NEAR_ZERO,))
        states, engine = self._descend(_Case(observation, labels, channel, progress, stop), generator)
        chosen = min(states, key=lambda state: state.best_objective)
        return Reconstruction(
            clips=chosen.best.cpu(),
            labels=labels,
            adaptive=channel.adaptive,
            engine=engine,
            iterations=sum(len(state.history) for state in states),
            restarts=sum(bool(state.history) for state in states),
            objective=chosen.best_objective if math.isfinite(chosen.best_objective) else math.nan,
            history=tuple(chosen.history),
            nan_at=chosen.nan_at,
            flags=health(chosen),
        )

    def _starts(self, knowledge: Knowledge, generator: torch.Generator) -> list[Tensor]:
        """Draw a start a restart: what the attacker expects, plus noise that sets the restarts apart."""
        shape = knowledge.batch_shape
        noise = [torch.rand(shape, generator=generator) * 0.2 - 0.1 for _ in range(self.restarts)]
        return [(_centre(knowledge) + each).clamp(0, 1) for each in noise]

    def _descend(self, case: _Case, generator: torch.Generator) -> tuple[list[State], str]:
        """Run every restart; return where they stand, in clips, and the engine."""
        if case.knowledge.of_features:
            return self._descend_features(case, generator)
        references, starts = case.knowledge.references, self._starts(case.knowledge, generator)
        if references is None or self.reference == "start":
            loops = [self._loop(case, start, self.iterations, self.coarse) for start in starts]
            return run_descents(loops, self.iterations, progress=case.progress, stop=case.stop), loops[
                0
            ].engine
        weight = next(case.observation.model.parameters())
        still, model = self._scene(case, references).to(weight), case.observation.model
        everywhere = still.new_ones(len(still), 1, *case.knowledge.clip_shape[1:])
        second = self.iterations // 2 if self.reference == "mask" else 0
        befores = [Before(model, still, everywhere)] * len(starts)
        first = self._run_before(case, befores, starts, self.iterations - second, self.coarse)
        if not second:
            return first
        befores, clips = [], [state.best for state in first[0]]
        for each in clips:
            mask = moving_mask(each, still)
            unit = STILL_UNIT + (1 - STILL_UNIT) * mask
            befores.append(Before(model, empty_stage(each, still, mask), unit))
        done = sum(len(state.history) for state in first[0])
        going_on = replace(case, progress=_after(done, case.progress))
        last = self._run_before(going_on, befores, clips, second, 0)
        return [_joined(*each) for each in zip(first[0], last[0], strict=True)], last[1]

    def _scene(self, case: _Case, references: Tensor) -> Tensor:
        """Return the still scene (B, C, 1, H, W) whose own gradient is nearest to the update.

        How fast a scene changes is not known beforehand: where it does, frames further away only blur it.
        """
        scenes = still_scenes(references)
        if len(scenes) == 1:
            return scenes[0]
        weight = next(case.observation.model.parameters())

        def distance(scene: Tensor) -> float:
            clips = scene.expand(case.knowledge.batch_shape).to(weight).contiguous()
            loop = Descent(self._problem(case), DescentSettings(iterations=1), clips, engine="reference")
            found = float(loop.distance_and_gradient(clips)[0])
            return found if math.isfinite(found) else math.inf

        return min(scenes, key=distance)

    def _descend_features(self, case: _Case, generator: torch.Generator) -> tuple[list[State], str]:
        """Run every restart on features; return where they stand, in features, and the engine."""
        space = FeatureSpace(case.observation)
        problem = space.behind(self._problem(case))
        weight = next(case.observation.model.parameters())
        descent = DescentSettings(
            iterations=self.iterations,
            learning_rate=self.learning_rate * space.rate,
            rule=self.rule,
            schedule=self.schedule,
            warmup=self.warmup,
            patience=self.patience,
            tolerance=self.tolerance,
            prior=space.prior.to(weight),
            prior_weight=self._unit(case) * (self.prior + case.channel.prior_weight) * FEATURE_PULL,
            low=0.0 if case.knowledge.nonnegative else -math.inf,
            high=math.inf,
        )
        starts = [space.start(generator).to(weight) for _ in range(self.restarts)]
        loops = [Descent(problem, descent, start, engine=self.engine) for start in starts]
        states = run_descents(loops, self.iterations, progress=case.progress, stop=case.stop)
        compose = space.compose
        return [replace(s, x=compose(s.x), best=compose(s.best)) for s in states], loops[0].engine

    def _run_before(
        self, case: _Case, befores: list[Before], starts: list[Tensor], iterations: int, coarse: int
    ) -> tuple[list[State], str]:
        """Run descents over differences from scenes; return where they stand, in clips, and the engine."""
        device = next(case.observation.model.parameters()).device
        loops = [
            self._loop(case, before.decompose(start.to(device)), iterations, coarse, before)
            for start, before in zip(starts, befores, strict=True)
        ]
        states = run_descents(loops, iterations, progress=case.progress, stop=case.stop)
        clips = [
            replace(state, x=before.compose(state.x), best=before.compose(state.best))
            for state, before in zip(states, befores, strict=True)
        ]
        return clips, loops[0].engine

    def _loop(
        self, case: _Case, start: Tensor, iterations: int, coarse: int, before: Before | None = None
    ) -> Descent:
        observation, channel = case.observation, case.channel
        weight = next(observation.model.parameters())
        problem = self._problem(case)
        knowledge = observation.knowledge
        if before is None:
            knowledge = replace(knowledge, references=None)
            prior = expected_clips(knowledge)
            trust, smoothness = channel.prior_weight, channel.smoothness
        else:
            problem = _behind(problem, before)
            prior = torch.zeros(knowledge.batch_shape)
            trust, smoothness = channel.scene_weight, channel.scene_smoothness
        pull = self.prior + trust / expected_variance(knowledge)
        unit = self._unit(case)
        descent = DescentSettings(
            iterations=iterations,
            learning_rate=self.learning_rate,
            rule=self.rule,
            schedule=self.schedule,
            warmup=self.warmup,
            coarse=coarse,
            patience=self.patience,
            tolerance=self.tolerance,
            spatial=unit * self.spatial * smoothness,
            temporal=unit * self.temporal * smoothness,
            prior=None if prior is None else prior.to(weight),
            prior_weight=0.0 if prior is None else unit * pull,
            low=0.0 if before is None else -math.inf,
            high=1.0 if before is None else math.inf,
        )
        return Descent(problem, descent, start.to(weight), engine=self.engine)

    def _unit(self, case: _Case) -> float:
        return 1.0 if self.distance == "cosine" else _energy(case.observation.update.tensors)

    def _problem(self, case: _Case) -> Problem:
        observation, masks = case.observation, case.channel.masks
        weight = next(observation.model.parameters())
        loss = observation.update.facts.loss
        if masks is not None:
            masks = {name: mask.to(weight.device) for name, mask in masks.items()}
        return Problem(
            model=observation.model,
            loss=LOSSES[loss],
            labels=case.labels.to(weight.device),
            target={name: tensor.to(weight) for name, tensor in observation.update.tensors.items()},
            masks=masks,
            distance=self.distance,
        )


class MatchingBlind(Matching):
    """The same attack by an attacker who is not told of the defense: what a weak attack would report."""

    name: ClassVar[str] = "matching_blind"
    told: ClassVar[bool] = False


def health(state: State) -> tuple[str, ...]:
    """Return the flags that a descent's own history raises; the truth is not asked.

    ``objective became NaN``; ``objective did not fall``: the best is not 1 % below the first;
    ``still improving at the end``: the last tenth of the iterations at full resolution won over 5 % of the
    whole fall, and over 1 % of what is left: among noise the little that the last, short steps settle is
    much of a fall that is next to nothing.
    """
    if state.nan_at is not None:
        return (NOT_A_NUMBER,)
    history = state.history
    if len(history) < 2 or not state.best_objective < 0.99 * history[0]:
        return (NOT_FALLING,)
    # Objectives of clips of two resolutions are not compared.
    last = history[state.begun :]
    before = min(last[: -max(1, len(last) // 10)], default=math.inf)
    late = before - state.best_objective
    fall = history[0] - state.best_objective
    return (STILL_FALLING,) if late > max(0.05 * fall, 0.01 * abs(state.best_objective)) else ()


def _centre(knowledge: Knowledge) -> Tensor:
    expected = expected_clips(knowledge)
    return torch.full(knowledge.batch_shape, 0.5) if expected is None else expected


def _expected_features(knowledge: Knowledge) -> Tensor:
    return centre(knowledge).expand(knowledge.batch_shape)


def _behind(problem: Problem, before: Before) -> Problem:
    """Return the same problem for differences from a background."""

    def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in tensors.items()}

    masks = None if problem.masks is None else renamed(problem.masks)
    return replace(problem, model=before, target=renamed(problem.target), masks=masks)


def _after(done: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """Return progress that counts from what was done before."""
    return None if progress is None else (lambda count: progress(done + count))


def _joined(first: State, second: State) -> State:
    """Return where a descent stands whose second part ran before another scene."""
    if first.nan_at is not None or not math.isfinite(second.best_objective):
        return first
    return replace(
        second,
        history=[*first.history, *second.history],
        nan_at=None if second.nan_at is None else len(first.history) + second.nan_at,
        begun=len(first.history),
    )


def _in_mode(model: nn.Module, mode: str) -> nn.Module:
    """Return the model in the mode the client used; a copy unless all of it is in eval mode already."""
    if mode != "train" and not any(module.training for module in model.modules()):
        return model
    # Also where the mode is its own: a forward pass in train mode moves the statistics of batch norm.
    return copy.deepcopy(model).train(mode == "train")


def _energy(tensors: dict[str, Tensor]) -> float:
    """Return the squared norm of an update, the unit in which an L2 distance and its priors are weighed."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values())
