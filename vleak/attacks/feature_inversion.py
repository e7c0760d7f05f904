"""Feature inversion: from features back to the frames that a frozen extractor takes to them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vleak.attacks.base import Knowledge, Reconstruction, Work
from vleak.attacks.expectation import background, expected_clips, prior_answer
from vleak.attacks.matching.background import BackgroundModel
from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.descent.scheduler import run_descents
from vleak.errors import InputError

__all__ = ["NOTHING_FOUND", "FeatureInversion"]

NOTHING_FOUND = "no segment was found"


class FeatureInversion:
    """Inversion of the extractor: the clip whose features are those that an attack on the head recovered.

    Minimises the squared distance between features, in units of each segment's own squared norm, with total
    variation and a pull towards what the attacker expects of the scene (after Mahendran and Vedaldi, CVPR
    2015, arXiv 1412.0035), with Adam and from coarse clips to fine ones, in the engine of gradient matching.
    """

    def __init__(
        self,
        *,
        iterations: int = 400,
        learning_rate: float = 0.05,
        warmup: int = 5,
        coarse: int = 2,
        spatial: float = 0.1,
        temporal: float = 0.3,
        prior: float = 0.02,
        engine: Literal["native", "reference"] = "native",
    ) -> None:
        """Set the hyper-parameters.

        Args:
            iterations: at least 1.
            learning_rate, warmup, coarse: how the clip descends, see `vleak.descent.loop.DescentSettings`.
            spatial: weight of anisotropic total variation within frames.
            temporal: weight of total variation between frames.
            prior: weight of half the mean squared distance to what is expected: reference frames held still,
                else the mean public clip; without either there is none. With reference frames the clip
                descends as a difference from them, and total variation is that of the difference.
            engine: which loop runs, see `vleak.descent.loop`.

        Raises:
            InputError: fewer than one iteration.
        """
        if iterations < 1:
            raise InputError(f"feature inversion: expected at least 1 iteration, got {iterations}")
        self.iterations, self.learning_rate, self.warmup = iterations, learning_rate, warmup
        self.coarse, self.spatial, self.temporal, self.prior = coarse, spatial, temporal, prior
        self.engine = engine

    def rebuild(
        self,
        extractor: nn.Module,
        features: Tensor,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        recovered: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Reconstruction:
        """Rebuild clips from features.

        Args:
            extractor: public and frozen, maps (B, C, T, H, W) in [0, 1] to (B, S, F); used in the mode it is
                in, and left as it is.
            features: (B, S, F), what an attack recovered.
            knowledge: of the clips of frames: their ``clip_shape`` (C, T, H, W), and what else is held of
                them, ``public_clips`` and ``references``.
            generator: the only source of randomness, a CPU generator.
            recovered: (B, S) bool, which segments the features are of; others pull at nothing. None for all.
            progress: called now and then with the number of iterations done.
            stop: asked between iterations; True returns what there is.

        Returns:
            the clips (B, C, T, H, W); labels as granted, else 0, for features tell none.

        Raises:
            InputError: shapes do not fit, or the features are not finite.
        """
        started = time.perf_counter()
        _check(features, recovered, knowledge)
        labels = (
            torch.zeros(len(features), dtype=torch.long) if knowledge.labels is None else knowledge.labels
        )
        recovered = torch.ones(features.shape[:2], dtype=torch.bool) if recovered is None else recovered.cpu()
        if not recovered.any():
            clips = prior_answer(knowledge).clone()
            return Reconstruction(clips=clips, labels=labels, flags=(NOTHING_FOUND,))
        weight = next(extractor.parameters(), torch.empty(0))
        noise = torch.rand(knowledge.batch_shape, generator=generator) * 0.2 - 0.1
        features, recovered, noise = features.to(weight), recovered.to(weight.device), noise.to(weight)
        work = replace(self._work(extractor, features, recovered, knowledge, noise), labels=labels)
        run_descents(work.descents, work.iterations, progress=progress, stop=stop)
        answer = work.answer()
        clips = torch.nan_to_num(answer.clips, nan=0.5).clamp(0, 1)
        return replace(answer, clips=clips, seconds=time.perf_counter() - started)

    def _work(
        self, extractor: nn.Module, features: Tensor, recovered: Tensor, knowledge: Knowledge, noise: Tensor
    ) -> Work:
        """Return the descent on clips, or on their difference from the background of reference frames."""
        background_model = _background_model(extractor, knowledge, noise)
        if background_model is None:
            start = (prior_answer(knowledge) + noise.cpu()).clamp(0, 1).to(noise)
            settings, decode = self._settings(knowledge, _prior(knowledge, noise)), []
        else:
            start, decode = noise, [background_model.compose]
            settings = replace(self._settings(knowledge, torch.zeros_like(noise)), low=-1.0, high=1.0)
        problem = _problem(background_model or extractor, features, recovered)
        descent = Descent(problem, settings, start, engine=self.engine)
        labels = torch.zeros(len(features), dtype=torch.long)
        return Work(descents=[descent], iterations=self.iterations, labels=labels, decode=decode)

    def _settings(self, knowledge: Knowledge, prior: Tensor | None) -> DescentSettings:
        return DescentSettings(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            schedule="trapezoid",
            warmup=self.warmup,
            coarse=self.coarse,
            spatial=self.spatial,
            temporal=self.temporal if knowledge.clip_shape[1] > 1 else 0.0,
            prior=prior,
            prior_weight=0.0 if prior is None else self.prior,
        )


def _prior(knowledge: Knowledge, like: Tensor) -> Tensor | None:
    expected = expected_clips(knowledge)
    return None if expected is None else expected.to(like)


def _background_model(extractor: nn.Module, knowledge: Knowledge, like: Tensor) -> BackgroundModel | None:
    """Return the extractor behind the still background of reference frames; None without frames."""
    if knowledge.references is None:
        return None
    still = background(knowledge.references).to(like)
    return BackgroundModel(extractor, still, torch.ones_like(still[:, :1]))


class _Probe(nn.Module):
    """An extractor as a model of one parameter, by which the derivative of its summed outputs is features.

    The extractor's own parameters become buffers: they are fixed, and nothing of theirs is matched.
    """

    def __init__(self, extractor: nn.Module, scale: Tensor, features: int) -> None:
        super().__init__()
        self.extractor = _frozen(extractor)
        self.register_buffer("scale", scale)
        self.probe = nn.Parameter(torch.ones(*scale.shape[:2], features).to(scale))

    def forward(self, clips: Tensor) -> Tensor:
        outputs: Tensor = self.probe * self.get_buffer("scale") * self.extractor(clips)
        return outputs


def _sum(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.sum()


def _problem(extractor: nn.Module, features: Tensor, recovered: Tensor) -> Problem:
    """Return feature matching as gradient matching: the mean relative distance of the recovered segments."""
    scale = _scale(features, recovered)
    return Problem(
        model=_Probe(extractor, scale, features.shape[2]),
        loss=_sum,
        labels=torch.zeros(len(features), dtype=torch.long, device=features.device),
        target={"probe": scale * features},
        masks=None
        if bool(recovered.all())
        else {"probe": recovered[..., None].expand_as(features).contiguous()},
        distance="l2",
    )


def _scale(features: Tensor, recovered: Tensor) -> Tensor:
    """Return (B, S, 1) factors that make the squared norms of the recovered segments add up to 1.

    A segment far below the others is measured by a hundredth of their mean norm: one of zeros has no unit.
    """
    norms = features.norm(dim=2)
    mean = float(norms[recovered].mean()) or 1.0
    units: Tensor = norms.clamp(min=0.01 * mean) * math.sqrt(int(recovered.sum()))
    return (1 / units)[..., None]


def _frozen(extractor: nn.Module) -> nn.Module:
    """Return a copy whose parameters are buffers."""
    copied = copy.deepcopy(extractor)
    for module in copied.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return copied


def _check(features: Tensor, recovered: Tensor | None, knowledge: Knowledge) -> None:
    if knowledge.of_features:
        raise InputError(
            "feature inversion: expected knowledge of clips (C, T, H, W), got clip_shape "
            f"{knowledge.clip_shape}"
        )
    if features.ndim != 3 or len(features) != knowledge.batch_size or not features.numel():
        raise InputError(
            f"feature inversion: expected features of shape ({knowledge.batch_size}, segments, "
            f"features), got {tuple(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise InputError(
            "feature inversion: the features hold NaN or infinity; leave them out by `recovered`"
        )
    if recovered is not None and (recovered.dtype != torch.bool or recovered.shape != features.shape[:2]):
        raise InputError(
            f"feature inversion: expected `recovered` as bool of shape {tuple(features.shape[:2])}, got "
            f"{recovered.dtype} of shape {tuple(recovered.shape)}"
        )
