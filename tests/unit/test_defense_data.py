"""What defenses of the data send: the gradient of changed clips, which is all that an attack can rebuild."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from attacking import built_in, observe, psnr, run, scene
from tiny import Conv, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Matching
from vleak.defenses import Defense, HeldFrames, Mixup, MotionBlur, NoDefense, Oasis
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, LocalTraining, mean_gradient
from vleak.seeds import generator

SHAPE = (3, 8, 10, 10)


class Perceptron(nn.Module):
    """A first linear layer with bias, which gives single inputs away: x = dW_i / db_i."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(math.prod(SHAPE), 12)
        self.last = nn.Linear(12, 4)

    def forward(self, clips: Tensor) -> Tensor:
        return self.last((0.05 * self.first(clips.flatten(1))).tanh())


def moving_square(clips: int = 1) -> Tensor:
    """Clips (N, 3, 8, 10, 10): a square that moves over a still pattern."""
    videos = torch.rand(clips, 3, 1, 10, 10, generator=generator("still")).expand(-1, -1, 8, -1, -1).clone()
    for frame in range(8):
        videos[:, :, frame, 4:6, frame : frame + 2] = 1.0
    return videos


def quotients(defense: Defense, clips: Tensor, *seed: object) -> Tensor:
    """Return (units, *SHAPE), what every unit of the first layer saw, from the update alone."""
    labels = torch.arange(len(clips)) % 4
    sent = Client(build(Perceptron), defense=defense).update(clips, labels, generator("data", *seed)).tensors
    return (sent["first.weight"] / sent["first.bias"][:, None]).view(-1, *SHAPE)


def prepared(defense: Defense, clips: Tensor) -> Tensor:
    return defense.prepare_clips(clips, torch.zeros(len(clips), dtype=torch.int64), generator(0))[0]


def outside(rows: Tensor, span: Tensor) -> float:
    """Return the largest part of the rows (n, P), relative, that no mixture of the span (k, P) explains."""
    basis = torch.linalg.qr(span.double().T)[0]
    rows = rows.double()
    return float(((rows - rows @ basis @ basis.T).norm(dim=1) / rows.norm(dim=1)).max())


# ---- mixup


def test_mixup_sends_the_gradient_of_mixed_clips_under_mixed_labels() -> None:
    model, labels = build(Perceptron), torch.tensor([0, 1, 3])
    clips = torch.rand(3, *SHAPE, generator=generator("mixed"))
    sent = Mixup(alpha=1.0).aggregate(model, F.cross_entropy, clips, labels, generator("draws"))
    draws = generator("draws")
    share = float(torch.rand((), generator=draws, dtype=torch.float64))  # Beta(1, 1) is uniform
    order = torch.randperm(3, generator=draws).tolist()
    partner = [order[(order.index(clip) - 1) % 3] for clip in range(3)]
    assert all(partner[clip] != clip for clip in range(3))
    mixed = share * clips + (1 - share) * clips[partner]
    soft = share * F.one_hot(labels, 4) + (1 - share) * F.one_hot(labels[partner], 4)
    expected = mean_gradient(model, lambda logits, _: F.cross_entropy(logits, soft), mixed, labels)
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-4, atol=1e-7)


def test_shares_follow_alpha() -> None:
    clips, labels = torch.zeros(2, *SHAPE), torch.tensor([0, 1])
    clips[1] = 1.0

    def share(alpha: float, seed: int) -> float:
        seen: list[Tensor] = []

        class Looks(Perceptron):
            def forward(self, clips: Tensor) -> Tensor:
                seen.append(clips.detach())
                return super().forward(clips)

        Mixup(alpha=alpha).aggregate(build(Looks), F.cross_entropy, clips, labels, generator(seed))
        return float(seen[0][1].mean())

    near = [share(1000.0, seed) for seed in range(8)]
    spread = [share(0.2, seed) for seed in range(8)]
    assert max(abs(value - 0.5) for value in near) < 0.06
    assert sum(min(value, 1 - value) < 0.1 for value in spread) > 3
    assert len(set(spread)) > 4


def test_matching_rebuilds_the_mixture_and_not_the_clips() -> None:
    model, clips, labels = built_in("c3d_tiny"), scene().clips[:2], scene().labels[:2]

    def places(defense: Defense) -> list[float]:
        """Where each answer lies between the two clips: 0 at the one, 1 at the other."""
        seen = observe(model, clips, labels, defense, labels=labels)
        answers = run(Matching(iterations=60, restarts=1), seen).clips.flatten(1)
        way = (clips[1] - clips[0]).flatten()
        return sorted(((answers - clips[0].flatten()) @ way / way.square().sum()).tolist())

    apart, mixed = places(NoDefense()), places(Mixup(alpha=1000.0))
    assert apart[0] < 0.3
    assert apart[1] > 0.7
    assert all(0.35 < place < 0.65 for place in mixed)


def test_mixup_needs_two_clips_a_step() -> None:
    clips, labels = torch.rand(3, 3, 4, 8, 8, generator=generator("lone")), torch.tensor([0, 1, 2])
    lone = Client(build(Conv), defense=Mixup())
    with pytest.raises(CapabilityError, match="mixup: a step of 1 clip has no other clip"):
        lone.update(clips[:1], labels[:1], generator(0))
    steps = Client(build(Conv), defense=Mixup(), local=LocalTraining(steps=2, batch_size=2))
    with pytest.raises(CapabilityError, match="mixup: a step of 1 clip"):  # the last step of the pass
        steps.update(clips, labels, generator(0))


# ---- frames


@pytest.mark.parametrize("every", [2, 3, 8, 100])
def test_frames_are_held_and_are_what_arrives(every: int) -> None:
    clips = moving_square()
    held = prepared(HeldFrames(every=every), clips)
    for frame in range(8):
        assert torch.equal(held[:, :, frame], clips[:, :, frame // every * every])
    torch.testing.assert_close(
        quotients(HeldFrames(every=every), clips), held.expand(12, -1, -1, -1, -1), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        quotients(NoDefense(), clips), clips.expand(12, -1, -1, -1, -1), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 2, 6, 5)])
def test_segments_of_features_are_held(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=generator("segments"))
    held = prepared(HeldFrames(every=4), features).movedim(-2, 0)
    kept = features.movedim(-2, 0)
    assert torch.equal(held, kept[[0, 0, 0, 0, 4, 4]])


# ---- blur


def test_blur_acts_where_something_moves() -> None:
    sharp = torch.rand(3, 1, 22, 22, generator=generator("still")).repeat(1, 8, 1, 1)
    for frame in range(8):
        sharp[:, frame, 10:12, 6 + frame : 8 + frame] = 1.0
    blurred = prepared(MotionBlur(sigma=1.0), sharp[None])[0]
    changed = (blurred != sharp).any(0).any(0)
    moving = torch.zeros(22, 22)
    moving[10:12, 6:15] = 1.0
    assert changed[10:12, 6:15].all()
    assert F.max_pool2d(moving[None], 5, 1, 2)[0][changed].all()
    assert blurred[:, :, 10:12, 6:15].var() < sharp[:, :, 10:12, 6:15].var()
    still = sharp[:, :1].expand(-1, 8, -1, -1)
    assert torch.equal(prepared(MotionBlur(), still[None])[0], still)


def test_blur_is_gaussian_and_keeps_the_mean() -> None:
    clips = torch.zeros(1, 1, 2, 31, 31)
    clips[0, 0, 0, 15, 15] = 1.0
    blurred = prepared(MotionBlur(sigma=2.0, threshold=0.0), clips)[0, 0, 0].double()
    cut = blurred[11:20, 11:20]  # within two deviations of the pixel that flashes
    distance = (torch.arange(9)[:, None] - 4) ** 2 + (torch.arange(9)[None] - 4) ** 2
    expected = (-distance.double() / 8).exp() / (2 * math.pi * 4)
    torch.testing.assert_close(cut, expected, rtol=0.01, atol=0)
    assert not blurred[:10].any()


def test_blurred_clips_are_what_arrives() -> None:
    clips = moving_square()
    seen, blurred = quotients(MotionBlur(sigma=1.0), clips), prepared(MotionBlur(sigma=1.0), clips)
    torch.testing.assert_close(seen, blurred.expand(12, -1, -1, -1, -1), rtol=0, atol=1e-4)
    assert psnr(seen[:1], clips) < 35


# ---- oasis


def test_oasis_sends_the_mean_gradient_of_the_enlarged_batch() -> None:
    model, labels = build(Perceptron), torch.tensor([0, 3])
    clips = torch.rand(2, *SHAPE, generator=generator("turned"))
    sent = Oasis(copies="rotations").aggregate(model, F.cross_entropy, clips, labels, generator(0))
    turned = torch.cat([torch.rot90(clips, turns, (3, 4)) for turns in range(4)])
    expected = mean_gradient(model, F.cross_entropy, turned, labels.repeat(4))
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-3, atol=1e-6)
    mirrored = torch.cat([clips, clips.flip(4), clips.flip(3)])
    expected = mean_gradient(model, F.cross_entropy, mirrored, labels.repeat(3))
    sent = Oasis(copies="flips").aggregate(model, F.cross_entropy, clips, labels, generator(0))
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, rtol=1e-3, atol=1e-6)


def test_oasis_leaves_a_mixture_of_the_copies_to_the_exact_attack() -> None:
    clips = moving_square()
    turned = torch.cat([torch.rot90(clips, turns, (3, 4)) for turns in range(4)]).flatten(1)
    rows = quotients(Oasis(), clips).flatten(1)
    assert outside(rows, turned) < 1e-3
    assert outside(rows, clips.flatten(1)) > 0.05  # a multiple of the clip itself it is not
    assert outside(quotients(NoDefense(), clips).flatten(1), clips.flatten(1)) < 1e-3


def test_shears_move_rows_by_their_height() -> None:
    clips = torch.zeros(1, *SHAPE)
    clips[..., 4:6] = 1.0  # a vertical bar
    found: list[Tensor] = []

    class Looks(Perceptron):
        def forward(self, clips: Tensor) -> Tensor:
            found.append(clips.detach())
            return super().forward(clips)

    Oasis(copies="rotations_shears").aggregate(
        build(Looks), F.cross_entropy, clips, torch.tensor([0]), generator(0)
    )
    assert len(found) == 6
    for sheared, sign in zip(found[4:], (1, -1), strict=True):
        frame, columns = sheared[0, 0, 0], torch.arange(10.0)
        centres = (frame * columns).sum(1) / frame.sum(1)
        assert torch.all(sign * (centres.diff()) < -0.3) or torch.all(sign * centres.diff() > 0.3)
    assert not torch.equal(found[4], found[5])


# ---- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mixup(alpha=0.0), "mixup: alpha is 0.0, expected a number from 0.01 to 1000"),
        (lambda: Mixup(alpha=math.nan), "mixup: alpha is nan"),
        (lambda: Mixup(alpha=math.inf), "mixup: alpha is inf"),
        (lambda: HeldFrames(every=1), "frames: every is 1, expected a whole number from 2"),
        (lambda: HeldFrames(every=2.5), "frames: every is 2.5"),  # type: ignore[arg-type]
        (lambda: HeldFrames(every=True), "frames: every is True"),
        (lambda: MotionBlur(sigma=0.0), "blur: sigma is 0.0, expected a number from 0.3 to 100"),
        (lambda: MotionBlur(sigma=math.inf), "blur: sigma is inf"),
        (lambda: MotionBlur(threshold=1.0), "blur: threshold is 1.0"),
        (lambda: MotionBlur(threshold=math.nan), "blur: threshold is nan"),
        (lambda: Oasis(copies="rotation"), "unknown copies of oasis 'rotation'; did you mean rotations"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("defense", [MotionBlur(), Oasis()])
def test_features_have_no_pixels(defense: Defense) -> None:
    features, labels = torch.rand(2, 6, 5), torch.tensor([0, 1])
    with pytest.raises(CapabilityError, match=f"{defense.name}: features .* raw pipeline"):
        Client(nn.Sequential(nn.Flatten(), nn.Linear(30, 2)), defense=defense).update(
            features, labels, generator(0)
        )
