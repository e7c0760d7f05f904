"""From features back to frames: it beats who never saw them, in the engine, and only what was found pulls."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from tiny import build
from torch import Tensor, nn

from vleak.attacks import FeatureInversion, Knowledge, Reconstruction
from vleak.attacks.feature_inversion import NOTHING_FOUND, _problem, _scale
from vleak.data import ClipSet, load_clips
from vleak.descent.loop import Descent, DescentSettings
from vleak.errors import InputError
from vleak.seeds import generator

FRAMES, SIZE = 4, 16
SHAPE = (3, FRAMES, SIZE, SIZE)


class Segments(nn.Module):
    """A frozen stand-in: a 3-D CNN over segments of two frames, or a CNN over single ones."""

    def __init__(self, frames: int = 2, *, unit_norm: bool = False) -> None:
        super().__init__()
        self.segment_frames, self.features, self.unit_norm = frames, 96, unit_norm
        self.conv = nn.Conv3d(3, 12, (frames, 3, 3), stride=(frames, 2, 2), padding=(0, 1, 1))
        self.head = nn.Linear(12 * (SIZE // 2) ** 2, self.features)
        self.requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        maps = self.conv(clips * 2 - 1).relu().transpose(1, 2).flatten(2)
        features = self.head(maps).relu()
        return features / features.norm(dim=2, keepdim=True) if self.unit_norm else features


EXTRACTORS = {
    "segments": Segments,
    "frames": lambda: Segments(1),
    "unit norm": lambda: Segments(unit_norm=True),
}


@cache
def scene() -> ClipSet:
    return load_clips("synthetic", clips=2, frames=FRAMES, size=SIZE, seed=5, public=12, references=1)


@cache
def extractor(name: str = "segments") -> nn.Module:
    return build(EXTRACTORS[name]).eval()


def knowledge(batch: int = 1, **known: Any) -> Knowledge:
    settings = {"public_clips": scene().public_clips, **known}
    return Knowledge(clip_shape=SHAPE, batch_size=batch, classes=6, **settings)


def rebuild(
    name: str, clips: Tensor, known: Knowledge, *, recovered: Any = None, **settings: Any
) -> Reconstruction:
    attack = FeatureInversion(**{"iterations": 150, **settings})
    return attack.rebuild(
        extractor(name), extractor(name)(clips), known, generator("fi"), recovered=recovered
    )


def psnr(answer: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((answer - truth).square().mean()))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_exact_features_give_more_than_the_null_attackers_have(name: str) -> None:
    truth = scene().clips[:1]
    answer = rebuild(name, truth, knowledge())
    best = max(psnr(torch.full_like(truth, 0.5), truth), psnr(scene().public_clips.mean(0), truth[0]))
    assert psnr(answer.clips, truth) > best + 1
    assert answer.engine == "native"
    assert answer.clips.shape == truth.shape
    assert (len(answer.history), answer.iterations) == (150, 150)
    assert answer.objective < 0.3 * answer.history[0]
    assert not any(p.requires_grad for p in extractor(name).parameters())


def test_a_reference_frame_is_the_better_start() -> None:
    truth, references = scene().clips[:1], scene().references
    assert references is not None
    plain, held = (rebuild("segments", truth, known) for known in
                   (knowledge(), knowledge(references=references[:1])))  # fmt: skip
    assert psnr(held.clips, truth) > psnr(plain.clips, truth)


def test_both_engines_agree() -> None:
    truth = scene().clips[:1]
    native, plain = (
        rebuild("segments", truth, knowledge(), iterations=8, engine=e) for e in ("native", "reference")
    )
    assert (native.engine, plain.engine) == ("native", "reference")
    assert native.history == pytest.approx(plain.history, rel=1e-3)
    # A pixel on the kink of a ReLU may go either way, and Adam's first steps are of one length.
    assert float((native.clips - plain.clips).abs().mean()) < 1e-4


def test_distance_is_the_relative_one_and_its_derivative_that_of_autograd() -> None:
    clips, x = scene().clips[:2], torch.rand(2, *SHAPE, generator=generator("x"))
    features = extractor()(clips)
    recovered = torch.tensor([[True, False], [True, True]])
    loop = Descent(
        _problem(extractor(), features, recovered), DescentSettings(iterations=1), x, engine="reference"
    )
    distance, gradient = loop.distance_and_gradient(x)
    x.requires_grad_()
    relative = (extractor()(x) - features).square().sum(2) / features.square().sum(2)
    expected = relative[recovered].mean()
    torch.testing.assert_close(distance.to(expected), expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-4, atol=1e-7)


def test_units_of_the_features_do_not_matter() -> None:
    class Louder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = extractor()

        def forward(self, clips: Tensor) -> Tensor:
            return 1000 * self.inner(clips)

    truth = scene().clips[:1]
    quiet = rebuild("segments", truth, knowledge(), iterations=10)
    attack = FeatureInversion(iterations=10)
    loud = attack.rebuild(Louder(), 1000 * extractor()(truth), knowledge(), generator("fi"))
    assert loud.history == pytest.approx(quiet.history, rel=1e-3)


def test_what_was_not_found_pulls_at_nothing() -> None:
    truth = scene().clips[:1]
    recovered = torch.tensor([[True, False]])
    features = extractor()(truth)
    garbage = features.clone()
    garbage[:, 1] = 50.0
    attack = FeatureInversion(iterations=60)
    first, second = (
        attack.rebuild(extractor(), each, knowledge(), generator("fi"), recovered=recovered)
        for each in (features, garbage)
    )
    assert torch.equal(first.clips, second.clips)
    both = attack.rebuild(extractor(), garbage, knowledge(), generator("fi"))
    assert not torch.equal(first.clips, both.clips)
    gaps = (first.clips - truth).square().mean((0, 1, 3, 4))
    assert gaps[:2].mean() < gaps[2:].mean()  # two frames a segment
    assert psnr(first.clips[:, :, :2], truth[:, :, :2]) > psnr(
        scene().public_clips.mean(0)[:, :2], truth[0, :, :2]
    )


def test_nothing_found_is_what_was_expected() -> None:
    answer = rebuild(
        "segments", scene().clips[:1], knowledge(), recovered=torch.zeros(1, 2, dtype=torch.bool)
    )
    assert torch.equal(answer.clips[0], scene().public_clips.mean(0))
    assert answer.flags == (NOTHING_FOUND,)


def test_scale_makes_norms_add_up_to_one_and_a_segment_of_zeros_stays_finite() -> None:
    features = torch.rand(2, 3, 5, generator=generator("features"))
    recovered = torch.tensor([[True, True, False], [True, True, True]])
    weighed = _scale(features, recovered) * features
    torch.testing.assert_close(weighed[recovered].square().sum(), torch.tensor(1.0))
    assert torch.isfinite(_scale(torch.zeros(2, 3, 5), recovered)).all()
    features[0, 0] = 0
    assert torch.isfinite(_scale(features, recovered)).all()


def test_it_depends_on_its_generator_alone_and_stops_when_told() -> None:
    attack, features = FeatureInversion(iterations=20), extractor()(scene().clips[:2])
    answers = [attack.rebuild(extractor(), features, knowledge(2), generator("fi", n)) for n in (0, 0, 1)]
    assert torch.equal(answers[0].clips, answers[1].clips)
    assert not torch.equal(answers[0].clips, answers[2].clips)
    seen: list[int] = []
    stopped = attack.rebuild(extractor(), features, knowledge(2), generator("fi"), progress=seen.append,
                             stop=lambda: len(seen) == 1)  # fmt: skip
    assert 0 < stopped.iterations < 20


@pytest.mark.parametrize(
    ("features", "known", "recovered", "message"),
    [
        (torch.rand(1, 2), {}, None, "expected features of shape"),
        (torch.rand(2, 2, 96), {}, None, "expected features of shape"),
        (torch.full((1, 2, 96), math.nan), {}, None, "NaN or infinity"),
        (torch.rand(1, 2, 96), {}, torch.ones(1, 2), "expected `recovered` as bool"),
        (
            torch.rand(1, 2, 96),
            {"clip_shape": (2, 96), "public_clips": None},
            None,
            "expected knowledge of clips",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    features: Tensor, known: dict[str, Any], recovered: Tensor | None, message: str
) -> None:
    given = Knowledge(**{"clip_shape": SHAPE, "batch_size": 1, "classes": 6, **known})
    with pytest.raises(InputError, match=message):
        FeatureInversion(iterations=1).rebuild(
            extractor(), features, given, generator("fi"), recovered=recovered
        )


def test_no_iterations_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        FeatureInversion(iterations=0)
