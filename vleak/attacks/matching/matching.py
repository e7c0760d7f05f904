"""Gradient matching: clips whose gradient points where the update points."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vleak.attacks.base import Attack, Hooks, Knowledge, Observation, Reconstruction, Work
from vleak.attacks.expectation import expected_clips, expected_variance, prior_answer
from vleak.attacks.matching.adaptive import adaptive_weights, energy_of
from vleak.attacks.matching.background import (
    BackgroundModel,
    moving_mask,
    still_backgrounds,
    without_covered_texture,
)
from vleak.attacks.matching.denoised import Denoiser, DenoiserRound, denoised, found, pulled
from vleak.attacks.matching.feature_space import FEATURE_PULL, FeatureSpace, with_model
from vleak.attacks.matching.problems import problem_of
from vleak.attacks.matching.rounds import joined
from vleak.attacks.matching.setup import MaskRound, Setup, as_measured, unrolled, with_unknown_masks
from vleak.attacks.matching.spectrum import SPECTRUM_RATE, SpectrumModel, noise_pull
from vleak.attacks.matching.summed import in_sum
from vleak.attacks.simulation import known_channel
from vleak.descent.loop import ENGINES, Descent, DescentSettings, Problem, State
from vleak.descent.optimizers import RULES as SECOND_ORDER
from vleak.descent.problem import RULES, SCHEDULES, Rule, Schedule
from vleak.errors import InputError, unknown_name
from vleak.federated import LocalTraining

__all__ = ["REFERENCE_USES", "Matching", "NonAdaptiveMatching"]

REFERENCE_USES = ("start", "prior", "mask")
DISTANCES = ("cosine", "l2")
PATHS = ("auto", "unroll", "midpoint")
LAYERS = ("equal", "balanced")
REGULARISERS = ("total_variation", "spectrum")
STILL_UNIT = 0.5
"""How far a pixel may stray from the background where nothing seems to move, in units of where something
does; chosen among 0 (held), 0.25, 0.5 and 1 on synthetic clips of seed 1000, which no default run draws."""


class Matching(Attack):
    """Gradient matching with total variation in space and time, adaptive to the defense.

    Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053) for video, with Adam, from coarse
    clips to fine ones, a temporal term, and, where the attacker knows the defense, its likelihood and a
    prior (after Balunović et al., ICLR 2022, arXiv 2111.04706): see `vleak.attacks.matching.adaptive`.
    """

    name: ClassVar[str] = "matching"
    takes: ClassVar[frozenset[str]] = frozenset({"frames", "features"})
    local_steps: ClassVar[bool] = True
    several_rounds: ClassVar[bool] = True

    def __init__(
        self,
        *,
        iterations: int = 150,
        restarts: int = 1,
        distance: Literal["cosine", "l2"] = "cosine",
        layers: Literal["equal", "balanced"] = "equal",
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
        regulariser: Literal["total_variation", "spectrum"] = "total_variation",
        noise: float = 1e-4,
        denoiser: str | Denoiser = "",
        reference: Literal["start", "prior", "mask"] = "mask",
        path: Literal["auto", "unroll", "midpoint"] = "auto",
        engine: Literal["native", "reference"] = "native",
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations: of each restart, at least 1, for each clip of a batch.
            restarts: independent starts, at least 1; the smallest objective is the answer.
            distance: between gradients; for "l2" the regularisers are in units of the target's squared norm.
            layers: what the tensors of the update count. "equal": every entry alike, so that those of large
                norm decide. "balanced": entries are divided by the root of their tensor's norm
                (`vleak.attacks.matching.problems`); better in deep networks.
            learning_rate: of one clip; for a batch of B by the root of B smaller. Likewise `prior` is by the
                root of B larger, total variation by its fourth root. All of these rules were chosen on
                surveillance videos that no reported figure uses.
            rule, schedule, warmup, coarse, patience, tolerance: how each start descends, see
                `vleak.descent.loop.DescentSettings`.
            spatial: weight of anisotropic total variation within frames.
            temporal: weight of total variation between frames.
            prior: weight of half the mean squared distance to the mean public clip, where there is one; a
                little of it settles what trained models leave open, such as contrast.
            regulariser: of clips without reference frames. "total_variation": the one above. "spectrum": a
                Gaussian prior in frequency space, learned from public clips and weighed by the channel's
                noise (`vleak.attacks.matching.spectrum`); `spatial`, `temporal`, `prior` and `coarse` have
                no part in it.
            noise: for "spectrum" and a denoiser, noise over signal energy assumed beside the channel's, above
                0: more where the network's gradient says little of the clip.
            denoiser: of clips of frames; a name of `DENOISERS`, ``package.module:callable``, or in Python any
                callable, clips (N, C, T, H, W) in [0, 1] to clips of that shape. In the second half of the
                iterations the clips are drawn, instead of by the regulariser, towards what it makes of them,
                the more the noisier the channel (`vleak.attacks.matching.denoised`). Empty for none.
            reference: use of reference frames, where the attacker holds any. "start": the descent starts
                from their background. "prior": besides, total variation and pull are of the difference from
                it, so that the background's own texture costs nothing. "mask": as "prior" for half of the
                iterations; in the other half what does not differ from the background by then pays more for
                doing so, and where something moves the background's texture is taken out.
            path: for deltas of local training. "unroll": the local steps are simulated on the clips
                (Dimitrov et al., TMLR 2022, arXiv 2206.12395). "midpoint": their mean gradient is matched
                at the weights halfway (Zhu et al., ICML 2023, arXiv 2306.00127). "auto": the first for Adam
                and up to 8 steps of SGD.
            engine: which loop runs, see `vleak.descent.loop`.

        Raises:
            InputError: fewer than one iteration or restart, or an unknown word.
        """
        for setting, given, known in (
            ("path", path, PATHS), ("reference", reference, REFERENCE_USES), ("rule", rule, RULES),
            ("schedule", schedule, SCHEDULES), ("distance", distance, DISTANCES), ("engine", engine, ENGINES),
            ("regulariser", regulariser, REGULARISERS), ("layers", layers, LAYERS),
        ):  # fmt: skip
            if given not in known:
                raise unknown_name(setting, given, known)
        if iterations < 1 or restarts < 1:
            raise InputError(
                f"matching: expected at least 1 iteration and 1 restart, got {iterations} and {restarts}"
            )
        self.iterations, self.restarts = iterations, restarts
        self.distance, self.layers, self.rule, self.schedule = distance, layers, rule, schedule
        self.warmup, self.coarse, self.patience, self.tolerance = warmup, coarse, patience, tolerance
        self.learning_rate, self.spatial, self.temporal, self.prior = learning_rate, spatial, temporal, prior
        self.noise, self._denoiser = noise, found(denoiser) if denoiser else None
        self.denoiser = self._denoiser.text if self._denoiser else ""
        self.regulariser, self.reference, self.path, self.engine = regulariser, reference, path, engine

    def prepare(self, observation: Observation, generator: torch.Generator, hooks: Hooks) -> Work:
        """Return a descent a restart, on clips, on differences from a background, or on features."""
        setup = self._rounds(observation) if observation.earlier else self._single(observation)
        setup = setup if self.rule in SECOND_ORDER else with_unknown_masks(setup)
        if setup.knowledge.of_features:
            if self._denoiser:
                raise InputError(
                    f"denoiser {self.denoiser!r} takes clips of frames, not features; leave it out"
                )
            return self._feature_work(setup, generator)
        setup = replace(setup, expected=self.expected(observation, hooks))
        references, starts = setup.knowledge.references, self._starts(setup, generator)
        if references is None and self.regulariser == "spectrum":
            return self._spectrum_work(setup, generator)
        if references is None or self.reference == "start":
            return self._clip_work(setup, starts)
        still = self._still_background(setup, references).to(setup.weight)
        everywhere = still.new_ones(len(still), 1, *setup.knowledge.clip_shape[1:])
        background = BackgroundModel(setup.observation.model, still, everywhere)
        iterations = self._length(setup)
        masked = iterations // 2 if self.reference == "mask" else 0
        work = self._background_work(
            setup, [background] * len(starts), starts, iterations - masked, self.coarse
        )
        return replace(work, state=MaskRound(setup, still, masked) if masked else self._behind(setup))

    def finish(self, work: Work, hooks: Hooks) -> Work | Reconstruction:
        """Return the round behind the background's mask, the next one behind a denoiser, or the answer."""
        following = work.state
        if isinstance(following, DenoiserRound):
            return self._denoiser_work(following, work.states())
        if not isinstance(following, MaskRound):
            return work.answer()
        states, model = work.states(), following.setup.observation.model
        backgrounds = []
        for state in states:
            mask = moving_mask(state.best, following.still)
            unit = STILL_UNIT + (1 - STILL_UNIT) * mask
            texture = without_covered_texture(state.best, following.still, mask)
            backgrounds.append(BackgroundModel(model, texture, unit))
        starts = [state.best for state in states]
        second = self._background_work(following.setup, backgrounds, starts, following.iterations, 0)
        return replace(second, earlier=states, state=self._behind(following.setup))

    def _length(self, setup: Setup) -> int:
        """Return the iterations before a denoiser comes in: clips of a batch come apart slowly."""
        behind = self._behind(setup)
        return self.iterations * setup.knowledge.batch_size - (behind.iterations if behind else 0)

    def _behind(self, setup: Setup) -> DenoiserRound | None:
        """Return the rounds behind the denoiser, if there are any."""
        iterations = self.iterations * setup.knowledge.batch_size // 2
        return DenoiserRound(setup, iterations) if self._denoiser and iterations else None

    def _denoiser_work(self, following: DenoiserRound, earlier: list[State]) -> Work:
        """Return descents from where they stand, drawn towards their denoised clips."""
        setup, descents = following.setup, list[Descent]()
        assert self._denoiser is not None
        settings = self._descent_settings(setup, following.length, 0, 0.0, 0.0, setup.knowledge)
        for clips in (state.best.clamp(0, 1) for state in earlier):
            target = denoised(self._denoiser, clips)
            drawn = pulled(settings, setup, clips, target, self.noise)
            descents.append(self._descent(self._problem(setup), drawn, clips))
        work = self._work(setup, descents, following.length)
        return replace(work, earlier=earlier, state=following.following())

    def _single(self, observation: Observation) -> Setup:
        """Return the setup of one round; where local steps are unrolled, at the weights before them."""
        setup = self._setup(observation.as_gradient(), unrolled(observation, self.path))
        if setup.local is None:
            return setup
        return replace(setup, observation=replace(setup.observation, model=observation.model))

    def _rounds(self, observation: Observation) -> Setup:
        """Return the setup of all rounds together, each delta as a gradient."""
        together = joined([_of_round(each.as_gradient()) for each in (*observation.earlier, observation)])
        known = together.channel is not None or observation.knowledge.simulate is not None
        knowledge = replace(together.knowledge, simulate=None) if known else together.knowledge
        setup = self._setup(replace(together, knowledge=knowledge), None)
        return replace(setup, rounds=1 + len(observation.earlier))

    def _setup(self, observation: Observation, local: LocalTraining | None) -> Setup:
        channel = known_channel(observation)
        if channel is not None and local is None:
            observation, channel = as_measured(observation, channel)
        weights = adaptive_weights(channel, observation.update, observation.knowledge)
        unit = 1.0 if self.distance == "cosine" else energy_of(observation.update)
        return Setup(observation, channel, weights, unit, local)

    def expected(self, observation: Observation, hooks: Hooks) -> Tensor | None:
        """Return clips (B, *clip_shape) that are nearer than the public mean; None where none are known."""
        return None

    def _starts(self, setup: Setup, generator: torch.Generator) -> list[Tensor]:
        """Draw a start a restart: what the attacker expects, plus noise that sets the restarts apart."""
        knowledge, expected = setup.knowledge, setup.expected
        expected = prior_answer(knowledge) if expected is None else expected
        draws = torch.rand((self.restarts, *knowledge.batch_shape), generator=generator)
        return [(expected + noise * 0.2 - 0.1).clamp(0, 1) for noise in draws]

    def _still_background(self, setup: Setup, references: Tensor) -> Tensor:
        """Return the background (B, C, 1, H, W) whose own gradient is nearest to the update.

        How fast a scene changes is not known beforehand: where it does, frames further away only blur it.
        """
        stills = still_backgrounds(references)
        if len(stills) == 1:
            return stills[0]

        def distance(still: Tensor) -> float:
            clips = still.expand(setup.knowledge.batch_shape).to(setup.weight).contiguous()
            descent = Descent(self._problem(setup), DescentSettings(iterations=1), clips, engine="reference")
            value = float(descent.distance_and_gradient(clips)[0])
            return value if math.isfinite(value) else math.inf

        return min(stills, key=distance)

    def _clip_work(self, setup: Setup, starts: list[Tensor]) -> Work:
        """Return descents on clips, drawn towards the expected ones; coarse levels would lose those given."""
        knowledge, weights = replace(setup.knowledge, references=None), setup.weights
        expected = expected_clips(knowledge) if setup.expected is None else setup.expected
        coarse = self.coarse if setup.expected is None else 0
        settings = self._descent_settings(
            setup, self._length(setup), coarse, weights.smoothness, weights.prior_weight, knowledge
        )
        settings = replace(
            settings,
            prior=None if expected is None else expected.to(setup.weight),
            prior_weight=0.0 if expected is None else settings.prior_weight,
        )
        problem = self._problem(setup)
        descents = [self._descent(problem, settings, start.to(setup.weight)) for start in starts]
        return replace(self._work(setup, descents, self._length(setup)), state=self._behind(setup))

    def _spectrum_work(self, setup: Setup, generator: torch.Generator) -> Work:
        """Return descents on coefficients that are standard normal under the prior."""
        knowledge, weight = setup.knowledge, setup.weight
        spectrum = SpectrumModel(setup.observation.model, knowledge).to(weight)
        pull = noise_pull(
            setup.channel, setup.observation.update, knowledge, cosine=self.distance == "cosine",
            assumed=self.noise,
        )  # fmt: skip
        settings = self._descent_settings(setup, self._length(setup), 0, 0.0, 0.0, knowledge)
        settings = replace(
            settings,
            learning_rate=settings.learning_rate * SPECTRUM_RATE,
            prior=torch.zeros(knowledge.batch_shape).to(weight),
            prior_weight=setup.unit * pull,
            low=-math.inf,
            high=math.inf,
        )
        problem = with_model(self._problem(setup), spectrum)
        noises = [torch.randn(knowledge.batch_shape, generator=generator) for _ in range(self.restarts)]
        descents = [self._descent(problem, settings, 0.1 * noise.to(weight)) for noise in noises]
        work = self._work(setup, descents, self._length(setup))
        return replace(work, decode=[spectrum.compose] * len(descents), state=self._behind(setup))

    def _background_work(
        self,
        setup: Setup,
        backgrounds: list[BackgroundModel],
        starts: list[Tensor],
        iterations: int,
        coarse: int,
    ) -> Work:
        """Return descents on differences from backgrounds, drawn towards none."""
        weights, knowledge = setup.weights, setup.knowledge
        settings = self._descent_settings(
            setup, iterations, coarse, weights.background_smoothness, weights.background_weight, knowledge
        )
        prior = torch.zeros(knowledge.batch_shape).to(setup.weight)
        settings = replace(settings, prior=prior, low=-math.inf, high=math.inf)
        problem, device = self._problem(setup), setup.weight.device
        descents = [
            self._descent(
                with_model(problem, background, ("background", "unit")),
                settings,
                background.decompose(start.to(device)).to(setup.weight),
            )
            for start, background in zip(starts, backgrounds, strict=True)
        ]
        work = self._work(setup, descents, iterations)
        return replace(work, decode=[background.compose for background in backgrounds])

    def _feature_work(self, setup: Setup, generator: torch.Generator) -> Work:
        """Return descents on features, in a unit in which they are of the order 1."""
        space = FeatureSpace(setup.observation)
        problem = space.problem(self._problem(setup))
        settings = self._descent_settings(setup, self._length(setup), 0, 0.0, 0.0, setup.knowledge)
        settings = replace(
            settings,
            learning_rate=settings.learning_rate * space.rate,
            prior=space.prior.to(setup.weight),
            prior_weight=setup.unit * (self.prior + setup.weights.prior_weight) * FEATURE_PULL,
            low=0.0 if setup.knowledge.nonnegative else -math.inf,
            high=math.inf,
        )
        starts = [space.start(generator).to(setup.weight) for _ in range(self.restarts)]
        descents = [self._descent(problem, settings, start) for start in starts]
        work = self._work(setup, descents, self._length(setup))
        return replace(work, decode=[space.compose] * len(starts))

    def _descent_settings(
        self,
        setup: Setup,
        iterations: int,
        coarse: int,
        smoothness: float,
        prior_weight: float,
        knowledge: Knowledge,
    ) -> DescentSettings:
        """Return the settings that all variables share, the prior itself aside."""
        # The more clips share an update, the less it says of each.
        pull = self.prior * math.sqrt(knowledge.batch_size) + prior_weight / expected_variance(knowledge)
        smoothness *= knowledge.batch_size**0.25
        return DescentSettings(
            iterations=iterations,
            learning_rate=self.learning_rate / math.sqrt(knowledge.batch_size),
            rule=self.rule,
            schedule=self.schedule,
            warmup=self.warmup,
            coarse=coarse,
            patience=self.patience,
            tolerance=self.tolerance,
            spatial=setup.unit * self.spatial * smoothness,
            temporal=setup.unit * self.temporal * smoothness,
            prior_weight=setup.unit * pull,
        )

    def _descent(self, problem: Problem, settings: DescentSettings, start: Tensor) -> Descent:
        return Descent(problem, settings, start, engine=self.engine)

    def _work(self, setup: Setup, descents: list[Descent], iterations: int) -> Work:
        labels = setup.observation.labels
        return Work(descents=descents, iterations=iterations, labels=labels, channel=setup.channel)

    def _problem(self, setup: Setup) -> Problem:
        return problem_of(setup, self.distance, balanced=self.layers == "balanced")


def _of_round(observation: Observation) -> Observation:
    """Return one of several rounds with what is known of its channel, each with senders of its own."""
    channel = known_channel(observation)
    if channel is not None and channel.senders:
        observation, channel = in_sum(observation, channel)
    return replace(observation, channel=channel)


class NonAdaptiveMatching(Matching):
    """Gradient matching without knowledge of the defense: what a weak attack would report."""

    name: ClassVar[str] = "matching_blind"
    adaptive: ClassVar[bool] = False
