"""Gaussian prior in frequency space: what it takes for likely, what it weighs, and what it finds in noise."""

from __future__ import annotations

import math

import pytest
import torch
from attacking import SHAPE, observe_clip, psnr, run, scene
from torch import Tensor, nn

from vleak.attacks import Knowledge, Matching, Observation
from vleak.attacks.matching.spectrum import SpectrumModel, noise_pull
from vleak.defenses import DpSgd
from vleak.errors import InputError
from vleak.federated import Channel, PublicFacts, Update
from vleak.seeds import generator


def knowledge(public: Tensor | None) -> Knowledge:
    return Knowledge(clip_shape=SHAPE, batch_size=1, classes=6, public_clips=public)


@pytest.mark.parametrize("public", [0, 1, 12])
def test_coefficients_are_those_of_the_clips(public: int) -> None:
    spectrum = SpectrumModel(nn.Flatten(), knowledge(scene().public_clips[:public]))
    clips = scene().clips[:3]
    torch.testing.assert_close(spectrum.compose(spectrum.decompose(clips)), clips, atol=2e-5, rtol=0)
    torch.testing.assert_close(spectrum(spectrum.decompose(clips)), clips.flatten(1), atol=2e-5, rtol=0)


def test_coefficients_of_clips_from_the_prior_have_unit_variance() -> None:
    random = generator("spectrum")
    shaped = torch.randn(200, *SHAPE, generator=random).cumsum(3).cumsum(4)
    drawn = 0.5 + 0.01 * shaped
    spectrum = SpectrumModel(nn.Identity(), knowledge(drawn[:100]))
    variances = spectrum.decompose(drawn[100:]).square().mean((0, 1))
    assert 0.7 < float(variances.mean()) < 1.3
    assert 0.5 < float(variances[:, 0, 0].mean()) < 1.5  # the strongest frequencies
    assert 0.2 < float(variances[:, -1, -1].mean()) < 1.3  # the weakest ones count as a little larger


@pytest.mark.parametrize("shape", [(3, 2, 16, 16), (1, 1, 2, 9)])
def test_short_axes_have_no_neighbours_to_smooth_with(shape: tuple[int, ...]) -> None:
    public = torch.rand(9, *shape, generator=generator("short"))
    known = Knowledge(clip_shape=shape, batch_size=1, classes=6, public_clips=public)
    spectrum = SpectrumModel(nn.Identity(), known)
    torch.testing.assert_close(spectrum.compose(spectrum.decompose(public)), public, atol=2e-5, rtol=0)


def test_without_public_clips_low_frequencies_are_the_likely_ones() -> None:
    spectrum = SpectrumModel(nn.Identity(), knowledge(None))
    assert float(spectrum.scale[0, 0, 0, 0]) == float(spectrum.scale.max())
    assert float(spectrum.scale[0, -1, -1, -1]) == float(spectrum.scale.min())
    assert float(spectrum.scale.square().mean()) == pytest.approx(0.05, rel=0.01)


class Constant(nn.Module):
    """Logits of constant size, whose gradient is linear in the clip: the posterior has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, math.prod(SHAPE)))

    def forward(self, clips: Tensor) -> Tensor:
        return clips.flatten(1) @ self.weight.T


def test_the_answer_is_the_maximum_of_the_posterior() -> None:
    random, public = generator("posterior"), scene().public_clips
    spectrum = SpectrumModel(nn.Identity(), knowledge(public))
    clip = spectrum.compose(torch.randn(1, *SHAPE, generator=random))
    deviation = 0.3
    # At weights of zero both probabilities are 1/2: the gradient of class 0 is (-x/2, x/2).
    noise = deviation * torch.randn(2, math.prod(SHAPE), generator=random)
    sent = torch.stack([-clip.flatten() / 2, clip.flatten() / 2]) + noise
    update = Update({"weight": sent}, len(sent) * 4, PublicFacts(loss="cross_entropy", batch_size=1))
    channel = Channel(noise_energy=deviation**2 * sent.numel(), noise_deviation=deviation)
    known = Knowledge(
        clip_shape=SHAPE, batch_size=1, classes=2, public_clips=public, labels=torch.tensor([0])
    )
    attack = Matching(regulariser="spectrum", distance="l2", iterations=600, learning_rate=0.02)
    answer = run(attack, Observation(Constant(), update, known, channel))
    # x has been seen twice, as -2 times the first row and 2 times the second, with variance 4 s^2 each.
    seen = spectrum.decompose((sent[1] - sent[0]).view(1, *SHAPE))
    variance = 2 * deviation**2 / spectrum.scale.square()
    expected = spectrum.compose(seen / (1 + variance)).clamp(0, 1)
    assert psnr(answer.clips, expected) > 40
    assert psnr(answer.clips, clip) > psnr(public.mean(0)[None], clip) + 1


def test_the_pull_grows_with_the_noise_and_never_vanishes() -> None:
    update = Update({"w": torch.full((1000,), 0.1)}, 4000, PublicFacts(loss="cross_entropy", batch_size=1))
    pulls = [
        noise_pull(Channel(noise_energy=noise), update, knowledge(None), cosine=True, assumed=1e-4)
        for noise in (0.0, 1.0, 5.0, 9.0)
    ]
    assert pulls == sorted(pulls)
    assert pulls[0] > 0
    pixels = math.prod(SHAPE)
    # Energy 10, of which 9 are noise: 9 / sqrt(1 * 10) a thousandth of the entries.
    assert pulls[3] == pytest.approx((9 / math.sqrt(10) + 1e-4) * pixels / 1000)
    squared = noise_pull(Channel(noise_energy=5.0), update, knowledge(None), cosine=False, assumed=1e-4)
    assert squared == pytest.approx((1.0 + 1e-4) * pixels / 1000)


def test_it_finds_more_in_noise_than_total_variation() -> None:
    gains: dict[str, list[float]] = {"spectrum": [], "total_variation": []}
    for index in range(3):
        observation = observe_clip(index, defense=DpSgd(noise_multiplier=0.02))
        truth, mean = scene().clips[index : index + 1], scene().public_clips.mean(0)[None]
        for name, values in gains.items():
            answer = run(Matching(regulariser=name), observation)
            values.append(psnr(answer.clips, truth) - psnr(mean, truth))
    assert min(gains["spectrum"]) > 0
    assert sum(gains["spectrum"]) > sum(gains["total_variation"]) + 1


def test_it_works_on_batches_and_rounds_and_repeats() -> None:
    observation = observe_clip(0, labels=scene().labels[:1])
    attack = Matching(regulariser="spectrum", iterations=5)
    first, second = run(attack, observation), run(attack, observation)
    assert torch.equal(first.clips, second.clips)
    rounds = Observation(**{**vars(observation), "earlier": (observation,)})
    assert run(attack, rounds).clips.shape == first.clips.shape
    kept = [value for module in observation.model.modules() for value in module._parameters.values()]
    assert all(isinstance(value, nn.Parameter) for value in kept), "the attack took the model's parameters"


def test_an_unknown_regulariser_is_refused() -> None:
    with pytest.raises(InputError, match=r"regulariser.*spectrum"):
        Matching(regulariser="wavelets")  # type: ignore[arg-type]
