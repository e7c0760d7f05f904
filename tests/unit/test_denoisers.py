"""Denoisers in gradient matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attacking import SHAPE, observe_clip, psnr, run, scene
from torch import Tensor, nn

from vleak.attacks import ATTACKS, DENOISERS, Knowledge, Matching, Observation
from vleak.attacks.matching.denoised import pulled
from vleak.defenses import Compress, DpSgd
from vleak.descent import DescentSettings
from vleak.enhance import denoisers
from vleak.enhance.network import fresh_weights
from vleak.errors import InputError
from vleak.seeds import generator

QSGD = Compress(codec="qsgd", bits=2)


def inverted(clips: Tensor) -> Tensor:
    return 1 - clips


def cropped(clips: Tensor) -> Tensor:
    return clips[..., :-1]


def broken(clips: Tensor) -> Tensor:
    return clips / 0.0 * 0.0


def raising(clips: Tensor) -> Tensor:
    raise ValueError("no weights\nhere")


def listing(clips: Tensor) -> list[Tensor]:
    return list(clips)


class Blur(nn.Module):
    """A network, of which an instance is a denoiser."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return clips averaged over neighbours, and spoil what it was given."""
        blurred: Tensor = nn.functional.avg_pool3d(clips, 3, 1, 1, count_include_pad=False)
        clips.zero_()
        return blurred


blur = Blur()


@pytest.mark.parametrize("denoise", [DENOISERS["total_variation"], denoisers.classical])
def test_built_in_denoisers_take_noise_out(denoise: Callable[[Tensor], Tensor]) -> None:
    still = scene(frames=8, size=32).clips[:2, :, :1].expand(-1, -1, 8, -1, -1)
    noisy = (still + 0.05 * torch.randn(still.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    quiet = denoise(noisy)
    assert quiet.shape == still.shape
    assert psnr(quiet, still) > psnr(noisy, still) + 2


def test_denoiser_gains_behind_coarse_quantisation() -> None:
    gains = []
    for index in range(4):
        observation = observe_clip(index, defense=QSGD)
        plain, denoised = (
            psnr(run(Matching(regulariser="spectrum", denoiser=name), observation).clips[0], truth)
            for truth in scene().clips[index : index + 1]
            for name in ("", "total_variation")
        )
        gains.append(denoised - plain)
    assert sum(gains) / 4 > 0.4


@pytest.mark.parametrize("settings", ["", "regulariser=spectrum,", "distance=l2,", "restarts=2,"])
def test_iterations_are_as_many_as_without_a_denoiser(settings: str) -> None:
    answer = run(ATTACKS.build(f"matching:{settings}iterations=23,denoiser=total_variation"), observe_clip())
    assert answer.iterations == len(answer.history) * answer.restarts == 23 * answer.restarts


def test_denoiser_is_followed_the_more_the_noisier_the_channel() -> None:
    def pull(noise: float) -> float:
        attack, observation = Matching(), observe_clip(defense=DpSgd(noise_multiplier=noise))
        setup = attack._single(replace(observation, knowledge=knowing(observation)))
        clips = torch.full((1, *SHAPE), 0.5)
        settings = DescentSettings(iterations=1, spatial=1.0, temporal=1.0)
        drawn = pulled(settings, setup, clips, clips + 0.1, attack.noise)
        assert (drawn.spatial, drawn.temporal) == (0, 0)
        return drawn.prior_weight

    assert pull(0.1) > 3 * pull(0.01) > 30 * pull(0.0) > 0


def knowing(observation: Observation) -> Knowledge:
    return replace(observation.knowledge, labels=scene().labels[:1])


def test_reference_frames_come_before_the_denoiser() -> None:
    asked = list[int]()

    def counted(clips: Tensor) -> Tensor:
        asked.append(len(clips))
        return clips

    still = scene().clips[:1, :, :1]
    answer = run(Matching(iterations=40, denoiser=counted), observe_clip(references=still))
    assert answer.iterations == 40
    assert len(asked) == 5


def test_denoiser_is_a_name_a_path_or_a_callable() -> None:
    given = Matching(iterations=12, denoiser=blur)
    named = ATTACKS.build(f"matching:iterations=12,denoiser={__name__}:blur")
    assert given.settings()["denoiser"] == "Blur"
    assert named.settings()["denoiser"] == f"{__name__}:blur"
    weighted = ATTACKS.build("matching:denoiser=total_variation:weight=0.2")
    assert weighted.settings()["denoiser"] == "total_variation:weight=0.2"
    answers = [run(attack, observe_clip(), "same").clips for attack in (given, named)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], run(Matching(iterations=12), observe_clip(), "same").clips)


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        (
            cropped,
            rf"cropped' returned \(1, 3, 4, 16, 15\), expected .* \(1, {SHAPE[0]}, 4, 16, 16\)",
        ),
        (broken, "broken' returned NaN or infinity"),
        (raising, "raising' raised ValueError: no weights"),
        (listing, "listing' returned list, expected a tensor"),
    ],
)
def test_broken_denoisers_are_named(denoiser: Callable[[Tensor], Tensor], message: str) -> None:
    for attack in (
        Matching(iterations=4, denoiser=denoiser),
        ATTACKS.build(f"matching:iterations=4,denoiser={__name__}:{denoiser.__name__}"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            run(attack, observe_clip())
        assert len(str(caught.value).splitlines()) == 1


def test_unknown_denoisers_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"unknown denoiser 'total_variaton'.*total_variation"):
        ATTACKS.build("matching:denoiser=total_variaton")
    with pytest.raises(InputError, match="denoiser is int, expected a name or a function"):
        Matching(denoiser=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no 'blurr'"):
        ATTACKS.build(f"matching:denoiser={__name__}:blurr")


def test_network_of_the_enhancer_is_a_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fresh_weights(3, generator("network"))
    monkeypatch.setattr(denoisers, "cached_network", lambda recipe, clips: weights)
    clips = scene().clips[:2]
    denoise = denoisers.network(scene().public_clips)
    assert denoise(clips).shape == clips.shape
    answer = run(Matching(iterations=12, denoiser=denoise), observe_clip())
    assert answer.iterations == 12
