"""What each defense SENDS: norm, noise, sparsity, grid, bytes, and what it refuses to send."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from tiny import Conv, Recurrent, Residual, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.defenses import (
    DEFENSES,
    Censor,
    Compress,
    Dgc,
    DpClient,
    DpClientAdaptive,
    DpSgd,
    FlowerClipping,
    FlowerLocalDp,
    Mixup,
    NoDefense,
    Noise,
    NvflarePercentile,
    NvflareSvt,
    OptimalNoise,
    Outpost,
    PowerSgd,
    Prune,
    PruneDual,
    WeakMasks,
)
from vleak.defenses.codecs import (
    decode,
    encode_float,
    encode_int8,
    encode_low_rank,
    encode_qsgd,
    encode_sign,
    encode_sparse,
    encode_ternary,
)
from vleak.defenses.dp_checks import per_clip_norms
from vleak.errors import CapabilityError, InputError
from vleak.federated import (
    Channel,
    Client,
    Defense,
    Message,
    Privacy,
    PublicFacts,
    Update,
    mean_gradient,
    per_clip_gradients,
    surviving_entries,
)
from vleak.seeds import generator


class OneNumber(nn.Module):
    """A single parameter with a single entry; a black clip gives it a zero gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, clips: Tensor) -> Tensor:
        return self.scale * clips.flatten(1)[:, :5]


def send(defense: Defense, model: nn.Module | None = None, *seed: object, clips: int = 3) -> Update:
    return Client(model or build(Conv), defense=defense).update(*batch(clips), generator("send", *seed))


@cache
def sent(defense: Defense, kind: type[nn.Module] = Conv) -> Update:
    """Update of `send`, made once for all tests that only look at it."""
    return send(defense, build(kind))


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def same(first: Update, second: Update) -> bool:
    return torch.equal(flat(first.tensors), flat(second.tensors))


PROVING = (DpSgd, DpClient, FlowerLocalDp)
NOISY = (*PROVING, Noise, OptimalNoise, NvflareSvt, WeakMasks)
PARTICULAR = (
    "soteria",
    "precode",
    "dp_hooks",
    "secure_sum",
    "lookalikes",
)  # refuse some of the models or batches here, or need public clips, and have test files of their own
EVERY = [defense for name in DEFENSES if name not in PARTICULAR for defense in DEFENSES[name].sweep()] + [
    DpSgd(noise_multiplier=0.0, max_grad_norm=0.05),
    Compress(codec="qsgd", bits=3, bucket=7),
    Compress(codec="bf16"),
    Prune(fraction=0.0),
    Prune(which="random"),
    Prune(which="threshold", threshold=0.05),
]


def noisy(defense: Defense) -> bool:
    """Return whether noise is in the message even of a gradient of zero."""
    return isinstance(defense, NOISY) and getattr(defense, "noise_multiplier", 1) > 0


RANDOM = [
    d
    for d in EVERY
    if noisy(d)
    or isinstance(d, Outpost | Censor | PowerSgd | Mixup)
    or d.settings().get("codec") in ("qsgd", "terngrad")
    or d.settings().get("which") == "random"
]
#: strengths between the weakest and the strongest of a sweep, which differ from them in a number.
BETWEEN = [each for name in DEFENSES if name not in PARTICULAR for each in list(DEFENSES[name].sweep())[1:-1]]
every = pytest.mark.parametrize(
    "defense",
    [pytest.param(each, marks=pytest.mark.slow if each in BETWEEN else ()) for each in EVERY],
    ids=repr,
)


# ---- rows that hold for every defense


@every
@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_message_fits_the_model(defense: Defense, kind: type[nn.Module]) -> None:
    model = build(kind)
    update = sent(defense, kind)
    update.check(model)
    assert list(update.tensors) == [name for name, _ in model.named_parameters()]
    for tensor in update.tensors.values():
        assert (tensor.dtype, tensor.device.type, tensor.requires_grad) == (torch.float32, "cpu", False)
        assert torch.isfinite(tensor).all()


@every
def test_update_changed_unless_nothing_was_asked(defense: Defense) -> None:
    unchanged = same(sent(defense), sent(NoDefense()))
    assert unchanged == (defense in (NoDefense(), Prune(fraction=0.0)))


@every
def test_generator_alone_decides(defense: Defense) -> None:
    assert same(sent(defense), send(defense))
    assert same(sent(defense), send(defense, None, 2)) == (defense not in RANDOM)


@every
@pytest.mark.parametrize("kind", [Conv, Recurrent])
def test_nothing_is_left_behind(defense: Defense, kind: type[nn.Module]) -> None:
    model = build(kind).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    send(defense, model)
    assert torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
    assert python_state == random.getstate()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert (parameter.grad, parameter.requires_grad, vars(parameter)) == (None, True, {})
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not module._forward_pre_hooks


def _dense() -> dict[str, Tensor]:
    """Return an update without zeros and ties."""
    numbers = generator("dense")
    return {
        name: torch.randn(shape, generator=numbers)
        for name, shape in [("a", (40, 30)), ("b", ()), ("c", (333,))]
    }


BYTES = {"fp16": 2, "bf16": 2, "fp8": 1, "int8": 1, "terngrad": 1 / 5, "sign": 1 / 8}


def _expected_bytes(defense: Defense, sent: dict[str, Tensor]) -> int:
    entries = sum(tensor.numel() for tensor in sent.values())
    sizes = [tensor.numel() for tensor in sent.values()]
    if isinstance(defense, PowerSgd):
        rank, rows, columns = defense.rank, *sent["a"].shape
        return 20 + 8 * len(sent) + 4 * (rank * (rows + columns) + sum(sizes) - rows * columns)
    if isinstance(defense, FlowerClipping):
        return 4 * entries + defense.adaptive
    if isinstance(defense, DpClientAdaptive):
        return 4 * entries + 4
    if isinstance(defense, Prune | PruneDual | Dgc):
        kept = flat(sent).nonzero().squeeze(1).numpy()
        width = max(1, int(np.diff(kept, prepend=-1).max() - 1).bit_length())
        return 20 + 8 + 4 * len(kept) + math.ceil(min(entries, len(kept) * width) / 8)
    if isinstance(defense, Compress) and defense.codec != "qsgd":
        scales = 0 if defense.codec in ("fp16", "bf16") else 4 * len(sent)
        return 20 + scales + math.ceil(entries * BYTES[defense.codec])
    if isinstance(defense, Compress):
        return 20 + 4 + 4 * math.ceil(entries / defense.bucket) + math.ceil(entries * defense.bits / 8)
    return 4 * entries


@every
def test_bytes_are_exact(defense: Defense) -> None:
    message = defense.transmit(_dense(), generator("bytes"))
    assert message.wire_bytes == _expected_bytes(defense, message.tensors)


def test_client_reports_the_bytes_of_its_message() -> None:
    gradient = send(NoDefense(), build(Residual)).tensors
    message = Prune(fraction=0.9).transmit(gradient, generator(0))
    assert send(Prune(fraction=0.9), build(Residual)).wire_bytes == message.wire_bytes


@every
def test_one_parameter_and_zero_gradient(defense: Defense) -> None:
    model = build(OneNumber)
    black, labels = torch.zeros(2, 1, 1, 1, 5), torch.tensor([0, 1])
    sent = Client(model, defense=defense).update(black, labels, generator(0)).tensors["scale"]
    assert sent.shape == (1,)
    # NVFlare sends a tensor without axes as it is, and this one has an axis.
    assert (sent.item() != 0) == noisy(defense)
    lit = torch.rand(2, 1, 1, 1, 5, generator=generator("lit"))
    sent = Client(model, defense=defense).update(lit, labels, generator(0)).tensors["scale"]
    assert (sent.item() != 0) == (not isinstance(defense, Censor))  # nothing is orthogonal to one number


@every
def test_settings_rebuild_the_defense_and_label_is_short(defense: Defense) -> None:
    assert type(defense)(**defense.settings()) == defense
    assert all(type(value) in (int, float, str, bool) for value in defense.settings().values())
    assert len(defense.label) <= 16
    assert repr(defense).startswith(type(defense).__name__ + "(")
    with pytest.raises(dataclasses.FrozenInstanceError):
        defense.bits = 1  # type: ignore[attr-defined]


@every
def test_only_noise_claims_privacy(defense: Defense) -> None:
    assert (defense.privacy() is not None) == (isinstance(defense, PROVING) and noisy(defense))


@pytest.mark.parametrize("name", DEFENSES)
def test_settings_are_numbers_where_numbers_belong_and_in_range(name: str) -> None:
    kind: Any = DEFENSES.find(name).factory
    for field in dataclasses.fields(kind):
        wrong = {"float": ("x", None, math.nan, math.inf), "int": ("x", None, math.nan, math.inf, 1.5),
                 "str": (None, 3, "no such word")}  # fmt: skip
        for value in wrong.get(str(field.type), ()):
            with pytest.raises(InputError) as caught:
                kind(**{field.name: value})
            assert "\n" not in str(caught.value)
            assert repr(value) in str(caught.value)


def test_sweeps() -> None:
    labels = {name: [defense.label for defense in DEFENSES[name].sweep()] for name in DEFENSES}
    assert labels == {
        "none": ["none"],
        "dp": ["dp σ=0.001", "dp σ=0.01", "dp σ=0.1", "dp σ=1"],
        "dp_client": ["client σ=0.001", "client σ=0.01", "client σ=0.1", "client σ=1"],
        "prune": ["prune 70 %", "prune 90 %", "prune 99 %", "prune 99.9 %"],
        "prune_dual": ["dual 1 + 75 %", "dual 5 + 75 %", "dual 20 + 75 %"],
        "dgc": ["dgc 90 %", "dgc 99 %", "dgc 99.9 %"],
        "compress": ["fp16", "int8", "fp8", "qsgd 8 bit", "qsgd 4 bit", "qsgd 2 bit", "terngrad", "sign"],
        "powersgd": ["powersgd rank 4", "powersgd rank 2", "powersgd rank 1"],
        "noise": ["noise 0.0001", "noise 0.001", "noise 0.01", "noise 0.1"],
        "optimal_noise": ["optimal 0.0001", "optimal 0.001", "optimal 0.01", "optimal 0.1"],
        "outpost": ["outpost 0.1", "outpost 0.8", "outpost 5"],
        "censor": ["censor 20"],
        "nvflare_percentile": ["pctile 10", "pctile 90"],
        "nvflare_svt": ["svt asked ε=0.1", "svt asked ε=0.1"],
        "flower_clipping": ["clip C=1", "adaptive C=0.1"],
        "flower_local_dp": ["local ε 64→143", "local ε 16→18.9", "local ε 4→3.51"],
        "mixup": ["mixup α=0.2", "mixup α=1", "mixup α=10"],
        "frames": ["frames 1/2", "frames 1/4", "frames 1/8"],
        "blur": ["blur σ=1", "blur σ=2", "blur σ=4"],
        "oasis": ["oasis +2", "oasis +3", "oasis +5"],
        "soteria": ["soteria 10 %", "soteria 40 %", "soteria 80 %"],
        "precode": ["precode 256", "precode 32"],
        "lookalikes": ["alike by clip", "alike by label"],
        "secure_sum": ["sum of 2", "sum of 4"],
        "masks": ["masks s=0.001", "masks s=0.01", "masks s=0.1"],
        "dp_layers": ["layers σ=0.001", "layers σ=0.01", "layers σ=0.1", "layers σ=1"],
        "dp_video": ["video σ=0.001", "video σ=0.01", "video σ=0.1", "video σ=1"],
        "dp_adaptive": ["adaptive σ=0.001", "adaptive σ=0.01", "adaptive σ=0.1", "adaptive σ=1"],
        "dp_client_adaptive": ["adapt cl σ=0.001", "adapt cl σ=0.01", "adapt cl σ=0.1", "adapt cl σ=1"],
        "dp_hooks": ["hooks σ=0.001", "hooks σ=0.01", "hooks σ=0.1", "hooks σ=1"],
    }
    assert all(
        type(d) is DEFENSES[name] and d.name == name for name in DEFENSES for d in DEFENSES[name].sweep()
    )
    with pytest.raises(InputError, match="unknown defense 'prunes'; did you mean prune or prune_dual"):
        DEFENSES.find("prunes")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DpSgd(noise_multiplier=-1.0), "noise_multiplier is -1.0"),
        (lambda: DpSgd(noise_multiplier=math.nan), "noise_multiplier is nan"),
        (lambda: DpSgd(noise_multiplier=math.inf), "noise_multiplier is inf"),
        (lambda: DpSgd(max_grad_norm=0.0), "max_grad_norm is 0.0"),
        (lambda: DpSgd(max_grad_norm=math.inf), "max_grad_norm is inf"),
        (lambda: DpSgd(delta=0.0), "delta is 0.0"),
        (lambda: DpSgd(delta=1.0), "delta is 1.0"),
        (lambda: DpSgd(rounds=0), "rounds is 0"),
        (lambda: DpSgd(rounds=1.5), "rounds is 1.5"),
        (lambda: DpSgd(sample_rate=0.0), "sample_rate is 0.0"),
        (lambda: DpSgd(sample_rate=1.1), "sample_rate is 1.1"),
        (lambda: Prune(fraction=1.0), "fraction is 1.0"),
        (lambda: Prune(fraction=-0.1), "fraction is -0.1"),
        (lambda: Prune(fraction=math.nan), "fraction is nan"),
        (lambda: Compress(codec="int7"), "unknown codec 'int7'; did you mean int8"),
        (lambda: Prune(which="smallest"), "unknown which of prune 'smallest'"),
        (lambda: Prune(which="threshold", threshold=0.0), "threshold is 0.0"),
        (lambda: Prune(which="threshold", threshold=math.nan), "threshold is nan"),
        (lambda: PruneDual(largest=math.nan), "largest is nan"),
        (lambda: PruneDual(largest=0.5, smallest=0.5), "leave nothing to send"),
        (lambda: Compress(codec="sign", bits=2), "sign takes no bits, got 2"),
        (lambda: Compress(codec="terngrad", error_feedback=True), "terngrad grows without bound"),
        (lambda: PowerSgd(rank=0), "rank is 0"),
        (lambda: PowerSgd(rank=True), "rank is True"),
        (lambda: Noise(deviation=0.0), "deviation is 0.0"),
        (lambda: Noise(max_norm=math.inf), "max_norm is inf"),
        (lambda: OptimalNoise(probes=0), "probes is 0"),
        (lambda: Outpost(noise=math.nan), "noise is nan"),
        (lambda: Outpost(pruned=1.0), "pruned is 1.0"),
        (lambda: Outpost(perturbed=0.0), "perturbed is 0.0"),
        (lambda: Censor(trials=0), "trials is 0"),
        (lambda: Censor(learning_rate=math.inf), "learning_rate is inf"),
        (lambda: NvflarePercentile(percentile=101.0), "percentile is 101.0"),
        (lambda: NvflarePercentile(gamma=0.0), "gamma is 0.0"),
        (lambda: NvflareSvt(epsilon=-1.0), "epsilon is -1.0"),
        (lambda: NvflareSvt(fraction=0.0), "fraction is 0.0"),
        (lambda: FlowerClipping(clipping_norm=0.0), "clipping_norm is 0.0"),
        (lambda: FlowerClipping(quantile=1.5), "quantile is 1.5"),
        (lambda: FlowerLocalDp(epsilon=math.nan), "epsilon is nan"),
        (lambda: FlowerLocalDp(sensitivity=-1.0), "sensitivity is -1.0"),
        (lambda: FlowerLocalDp(delta=0.0), "delta is 0.0"),
        (lambda: Compress(codec="qsgd", bits=1), "bits is 1"),
        (lambda: Compress(codec="qsgd", bits=9), "bits is 9"),
        (lambda: Compress(codec="qsgd", bits=2.5), "bits is 2.5"),
        (lambda: Compress(codec="int8", bits=4), 'int8 takes no bits, got 4; use codec="qsgd"'),
        (lambda: Compress(codec="qsgd", bucket=0), "bucket is 0"),
    ],
)
def test_hyper_parameter_refusals(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


# ---- dp


@pytest.mark.parametrize("kind", [Conv, Recurrent, Residual])
def test_dp_is_clip_and_noise_by_hand(kind: type[nn.Module]) -> None:
    model, (clips, labels), noise, bound = build(kind).eval(), batch(), 0.3, 0.2
    sent = DpSgd(noise_multiplier=noise, max_grad_norm=bound).aggregate(
        model, F.cross_entropy, clips, labels, generator("hand")
    )
    singles = [mean_gradient(model, F.cross_entropy, clips[i : i + 1], labels[i : i + 1]) for i in range(3)]
    draws = generator("hand")
    assert min(flat(single).norm() for single in singles) > bound
    for name, parameter in model.named_parameters():
        total = sum(single[name] * min(1.0, bound / flat(single).norm()) for single in singles)
        total = total + noise * bound * torch.randn(parameter.shape, generator=draws)
        torch.testing.assert_close(sent[name], total / 3, rtol=1e-4, atol=1e-6)


def test_dp_leaves_gradients_below_the_bound_alone() -> None:
    sent = send(DpSgd(noise_multiplier=0.0, max_grad_norm=1e4))
    torch.testing.assert_close(flat(sent.tensors), flat(send(NoDefense()).tensors), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bound", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("clips", [1, 3])
def test_dp_bounds_the_norm_and_the_influence_of_a_clip(bound: float, clips: int) -> None:
    defense, model = DpSgd(noise_multiplier=0.0, max_grad_norm=bound), build(Conv).eval()
    videos, labels = batch(clips)
    one = defense.aggregate(model, F.cross_entropy, videos, labels, generator(0))
    assert flat(one).norm() <= bound * (1 + 1e-5)
    if clips == 1:
        assert flat(one).norm() == pytest.approx(bound, rel=1e-3)
    else:
        fewer = defense.aggregate(model, F.cross_entropy, videos[1:], labels[1:], generator(0))
        # Sums, as the number of clips in the mean is public.
        assert (flat(one) * clips - flat(fewer) * (clips - 1)).norm() <= bound * (1 + 1e-4)


def test_dp_noise_has_the_promised_variance() -> None:
    noise, bound, clips = 2.0, 0.5, 3
    clipped = flat(send(DpSgd(noise_multiplier=0.0, max_grad_norm=bound)).tensors).double()
    noisy = flat(send(DpSgd(noise_multiplier=noise, max_grad_norm=bound), None, "variance").tensors).double()
    unit = (noisy - clipped) * clips / (noise * bound)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], unit.numel())
    assert low <= unit.square().sum() <= high
    assert abs(unit.mean()) <= norm.ppf(1 - 1e-6) / math.sqrt(unit.numel())
    # Neighbouring entries are independent: their correlation is normal with variance 1/n.
    assert abs((unit[1:] * unit[:-1]).mean()) <= norm.ppf(1 - 1e-6) / math.sqrt(unit.numel())


def test_dp_privacy_is_of_one_release_beside_the_run() -> None:
    privacy = DpSgd(noise_multiplier=1.3, rounds=100, sample_rate=0.01).privacy()
    assert privacy is not None
    assert privacy.epsilon == pytest.approx(3.2388, abs=1e-4)
    assert privacy.training_epsilon < privacy.epsilon
    assert (privacy.unit, privacy.adjacency, privacy.delta) == ("one clip", "zero out", 1e-5)
    assert (privacy.noise_multiplier, privacy.rounds, privacy.accountant) == (1.3, 100, "prv")


@pytest.mark.parametrize("layer", [nn.BatchNorm3d, nn.SyncBatchNorm])
def test_dp_refuses_batch_norm(layer: Callable[[int], nn.Module]) -> None:
    with pytest.raises(CapabilityError, match=r"'norm' is .*BatchNorm.*GroupNorm.*ModuleValidator"):
        send(DpSgd(), build(lambda: Residual(layer)))


def _aggregate(defense: DpSgd, model: nn.Module, loss: Any, clips: int = 3) -> dict[str, Tensor]:
    return defense.aggregate(model.eval(), loss, *batch(clips), generator(0))


def _ranking(logits: Tensor, labels: Tensor) -> Tensor:
    """Couple the clips as a MIL ranking loss does: a hinge between the scores of the first and the last."""
    return F.relu(1 - logits[0, 0] + logits[-1, 0]) + F.cross_entropy(logits, labels)


class CentredOverBatch(Conv):
    """Batch statistics without a batch-norm layer."""

    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips - clips.mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (Conv, _ranking),
        (CentredOverBatch, F.cross_entropy),
        (Conv, lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum")),
    ],
    ids=["ranking loss", "batch statistics", "summed loss"],
)
def test_guard_mean_of_per_clip_gradients(model: type[nn.Module], loss: Any) -> None:
    with pytest.raises(
        CapabilityError, match=r"not the gradient of the batch .* use a loss that is a mean over clips"
    ):
        _aggregate(DpSgd(), build(model), loss)


class WrongPadding(DpSgd):
    """Per-clip gradients as Opacus' hooks give them: wrong for circular padding."""

    def per_clip(self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        samples = per_clip_gradients(model, loss, clips, labels)
        return samples | {"conv.weight": 1.05 * samples["conv.weight"]}


def test_guard_mean_sees_an_error_of_five_per_cent_in_one_layer() -> None:
    with pytest.raises(CapabilityError, match="not the gradient of the batch"):
        _aggregate(WrongPadding(), build(Conv), F.cross_entropy)


class PerFrame(DpSgd):
    """One gradient a frame: what hooks return for a model that folds time into the batch."""

    def per_clip(self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        frames = clips.transpose(1, 2).flatten(0, 1)[:, :, None].expand(-1, -1, 4, -1, -1)
        return per_clip_gradients(model, loss, frames, labels.repeat_interleave(4))


def test_guard_one_gradient_a_clip() -> None:
    with pytest.raises(CapabilityError, match=r"12 gradients of parameter .* for 3 clips: with time folded"):
        _aggregate(PerFrame(), build(Conv), F.cross_entropy)


class ByHooks(DpSgd):
    """Per-clip gradients as hooks collect them: rows of the batch's backward pass, coupled or not."""

    def per_clip(self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        rows = model(clips).detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(rows, labels), rows)

        def linear(logits: Tensor, index: Tensor) -> Tensor:
            return len(clips) * (logits * slope[index]).sum()

        return per_clip_gradients(model, linear, clips, torch.arange(len(clips)))


def _scaled_by_the_batch(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels) * (1 + logits[:, 1].sum().tanh())


@pytest.mark.parametrize("clips", [2, 3, 5])
def test_guard_leave_one_out(clips: int) -> None:
    # These pass the other two guards: right number, and their mean is the plain gradient.
    with pytest.raises(CapabilityError, match=r"gradient of clip \d changed when other clips did"):
        _aggregate(ByHooks(), build(Conv), _scaled_by_the_batch, clips)


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (0, 2), (4, 1), (1, 4), (3, 4)])
def test_guard_leave_one_out_sees_every_pair(pair: tuple[int, int]) -> None:
    def coupled(logits: Tensor, labels: Tensor) -> Tensor:
        reader, read = pair
        return F.cross_entropy(logits, labels) + logits[reader, 0] * logits[read, 1].detach()

    with pytest.raises(CapabilityError, match=f"of clip {pair[0]} changed when other clips did"):
        _aggregate(ByHooks(), build(Conv), coupled, 5)


def test_guards_pass_what_is_sound() -> None:
    sound = _aggregate(ByHooks(noise_multiplier=0.1), build(Conv), F.cross_entropy, 5)
    ours = _aggregate(DpSgd(noise_multiplier=0.1), build(Conv), F.cross_entropy, 5)
    torch.testing.assert_close(flat(sound), flat(ours), rtol=1e-4, atol=1e-6)


class Infinite(DpSgd):
    def per_clip(self, model: nn.Module, loss: Any, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
        samples = per_clip_gradients(model, loss, clips, labels)
        return samples | {"head.bias": samples["head.bias"] * math.inf}


def test_guard_refuses_gradients_that_cannot_be_clipped() -> None:
    with pytest.raises(CapabilityError, match=r"'head\.bias' is not finite"):
        _aggregate(Infinite(), build(Conv), F.cross_entropy)


def test_per_clip_norms_span_all_parameters() -> None:
    samples = {"a": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([4.0, 2.0])}
    assert per_clip_norms(samples).tolist() == [5.0, 2.0]


# ---- channels: what a defense says of its message, against the message


def per_clip(model: nn.Module, clips: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return (1, B, *shape) by name, the gradients of one batch, as `Channel.expected` takes them."""
    samples = per_clip_gradients(model.eval(), F.cross_entropy, clips, labels)
    return {name: sample[None] for name, sample in samples.items()}


def stated(defense: Defense, update: Update) -> Channel:
    channel = Client(build(Conv), defense=defense).channel(update)
    assert channel is not None
    return channel


NOISELESS = [
    NoDefense(),
    DpSgd(noise_multiplier=0.0, max_grad_norm=0.05),
    DpSgd(noise_multiplier=0.0, max_grad_norm=1e4),
    Prune(fraction=0.0),
    Prune(fraction=0.5),
    Prune(fraction=0.9),
    Prune(fraction=0.999),
    Prune(which="threshold", threshold=0.05),
    PruneDual(),
    Compress(codec="sign"),
    NvflarePercentile(percentile=50.0, gamma=1.0),
]


@pytest.mark.parametrize("defense", NOISELESS, ids=repr)
@pytest.mark.parametrize("clips", [1, 3])
def test_channel_expects_what_is_sent_without_noise(defense: Defense, clips: int) -> None:
    model = build(Conv)
    update = send(defense, model, clips=clips)
    channel = stated(defense, update)
    expected = channel.expected(per_clip(model, *batch(clips)))
    assert channel.noise_energy == 0 or isinstance(defense, Compress)
    for name, tensor in update.tensors.items():
        torch.testing.assert_close(expected[name][0], tensor, rtol=1e-4, atol=1e-6)


@every
def test_channel_masks_are_what_survived(defense: Defense) -> None:
    update = sent(defense)
    channel = Client(build(Conv), defense=defense).channel(update)
    assert (channel is None) == isinstance(defense, Outpost)  # it depends on the weights
    pruning = isinstance(defense, Prune | PruneDual | Dgc)
    filtering = isinstance(defense, NvflarePercentile | NvflareSvt)
    if channel is None:
        return
    assert (channel.masks is not None) == (pruning or filtering)
    if channel.masks is not None and pruning:
        plain = flat(sent(NoDefense()).tensors)
        kept = flat(channel.masks)
        assert torch.equal(kept, flat(update.tensors) != 0)
        assert torch.equal(flat(update.tensors)[kept], plain[kept])
        assert kept.sum() <= max(1, round(channel.kept_fraction * len(plain)))


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_channel_of_dp_has_the_energy_of_the_noise(noise: float, clips: int) -> None:
    plain = flat(send(DpSgd(noise_multiplier=0.0, max_grad_norm=0.5), clips=clips).tensors).double()
    defense = DpSgd(noise_multiplier=noise, max_grad_norm=0.5)
    update = send(defense, clips=clips)
    measured = float((flat(update.tensors).double() - plain).square().sum())
    low, high = chi2.ppf([1e-6, 1 - 1e-6], len(plain)) / len(plain)
    assert low <= measured / stated(defense, update).noise_energy <= high


ROUNDING = [d for d in Compress.sweep() if d.codec not in ("terngrad", "sign")]


@pytest.mark.parametrize(
    "defense",
    [*ROUNDING, Compress(codec="qsgd", bits=3, bucket=7), Compress(codec="bf16")],
    ids=repr,
)
def test_channel_of_compression_has_the_energy_of_the_rounding(defense: Compress) -> None:
    plain = {"w": torch.randn(400, 500, generator=generator("rounding"))}
    message = defense.transmit(plain, generator(1))
    measured = float((message.tensors["w"].double() - plain["w"].double()).square().sum())
    told = defense.channel(Update(message.tensors, message.wire_bytes)).noise_energy
    # QSGD's energy is read off one message: what noise and signal have in common by chance, with a standard
    # deviation of 6 % of the noise at 8 bits, goes into it.
    # Of fp8 the largest entry alone, which sets the scale, decides where in a step the entries lie.
    rough = defense.codec in ("qsgd", "fp8")
    assert told == pytest.approx(measured, rel=0.2 if rough else 0.01)


def test_channel_of_dp_has_the_noise_on_the_sum() -> None:
    update = Update({"w": torch.zeros(7, 2)}, 0, PublicFacts(batch_size=4))
    channel = stated(DpSgd(noise_multiplier=2.0, max_grad_norm=0.5), update)
    assert (channel.noise_deviation, channel.clip_norm, channel.kept_fraction) == (1.0, 0.5, 1.0)
    assert channel.noise_energy == pytest.approx(14 * (1.0 / 4) ** 2)
    assert stated(DpSgd(noise_multiplier=0.0), update).noise_deviation == 0.0
    assert stated(Compress(), update).noise_deviation is None


def test_equal_channels_have_equal_keys_and_others_have_not() -> None:
    update = send(NoDefense())
    known = [d for d in EVERY if not isinstance(d, Outpost)]
    keys = [stated(defense, update).key for defense in known]
    assert len(set(keys)) == len(known)
    assert keys == [stated(defense, update).key for defense in known]
    # What the certificate alone depends on changes nothing of the channel.
    assert stated(DpSgd(rounds=9), update).key == stated(DpSgd(), update).key


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstLayerOff(Defense):
    """A defense from outside that sends zeros for the first layer."""

    def transmit(self, gradient: dict[str, Tensor], generator: torch.Generator) -> Message:
        tensors = {name: t * 0 if name.startswith("conv") else t + 0 for name, t in gradient.items()}
        return Message(tensors, 4 * sum(tensor.numel() for tensor in tensors.values()))

    def channel(self, update: Update) -> Channel:
        return Channel(masks=surviving_entries(update))


def test_a_defense_from_outside_that_zeroes_entries_says_which() -> None:
    update = send(FirstLayerOff())
    masks = stated(FirstLayerOff(), update).masks
    assert masks is not None
    assert not masks["conv.weight"].any()
    plain = send(NoDefense()).tensors
    assert torch.equal(masks["head.weight"], plain["head.weight"] != 0)
    assert Client(build(Conv), defense=Defense()).channel(update) is None  # the base states nothing


def _stating(channel: Callable[[Update], Any]) -> Defense:
    class Stating(Defense):
        def channel(self, update: Update) -> Any:
            return channel(update)

        def privacy(self) -> Any:
            return channel(send(NoDefense()))

    return Stating()


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (lambda update: {}["missing"], "channel raised KeyError: 'missing'"),
        (lambda update: "none", "channel returned str, expected vleak.federated.Channel"),
        (lambda update: Channel(masks={}), "mask 'unused' has shape None, the update's tensor has \\(\\)"),
        (
            lambda update: Channel(masks={n: t[None] != 0 for n, t in update.tensors.items()}),
            r"mask 'unused' has shape \(1,\)",
        ),
        (lambda update: Channel(masks=update.tensors), "mask 'unused' is torch.float32, expected torch.bool"),
        (lambda update: Channel(noise_energy=-1.0), "noise_energy is -1.0"),
        (lambda update: Channel(noise_energy=math.nan), "noise_energy is nan"),
        (lambda update: Channel(noise_deviation=math.inf), "noise_deviation is inf"),
        (lambda update: Channel(clip_norm=0.0), "clip_norm is 0.0"),
        (lambda update: Channel(kept_fraction=0.0), "kept_fraction is 0.0"),
        (lambda update: Channel(key=[1]), "unhashable type"),
    ],
)
def test_channels_that_do_not_fit_are_refused(channel: Callable[[Update], Any], words: str) -> None:
    with pytest.raises((CapabilityError, InputError), match=words):
        Client(build(Conv), defense=_stating(channel)).channel(send(NoDefense()))


def test_a_certificate_from_outside_is_one() -> None:
    with pytest.raises(CapabilityError, match="privacy returned float, expected"):
        Client(build(Conv), defense=_stating(lambda update: 1.0)).privacy()
    proven = dataclasses.replace(DpSgd().privacy() or Privacy(*[0] * 9), epsilon=2.0)  # type: ignore[arg-type]
    assert Client(build(Conv), defense=_stating(lambda update: proven)).privacy() == proven


# ---- prune


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.7, 0.9, 0.99, 0.999, 0.99999])
def test_prune_keeps_exactly_the_largest(fraction: float) -> None:
    plain = flat(_dense())
    sent = flat(Prune(fraction=fraction).transmit(_dense(), generator(0)).tensors)
    kept = sent != 0
    assert kept.sum() == max(1, round((1 - fraction) * len(plain)))
    assert torch.equal(sent[kept], plain[kept])
    if fraction:
        assert plain[kept].abs().min() >= plain[~kept].abs().max()


@pytest.mark.parametrize("keep", [1, 3, 5, 8])
def test_prune_breaks_ties_by_position(keep: int) -> None:
    tensors = {"a": torch.tensor([1.0, -1.0, 2.0, 1.0]), "b": torch.tensor([[1.0, -1.0], [2.0, 1.0]])}
    sent = flat(decode(encode_sparse(tensors, keep), {"a": (4,), "b": (2, 2)}))
    order = [2, 6, 0, 1, 3, 4, 5, 7]
    assert sent.nonzero().squeeze(1).tolist() == sorted(order[:keep])


def test_sparse_positions_take_the_shorter_form() -> None:
    tensors = {"w": 1e-3 * torch.rand(8000, generator=generator("positions"))}
    tensors["w"][::1000] = 1.0
    # 8 gaps of at most 999: 10 bits each. The bitmask is 1000 bytes, less than 2 bits for 7000 gaps.
    assert len(encode_sparse(tensors, 8)) == 20 + 8 + 10 + 32
    assert len(encode_sparse(tensors, 7000)) == 20 + 8 + 1000 + 28000


# ---- compress


def test_int8_is_the_nearest_point_of_each_tensors_grid() -> None:
    plain, sent = send(NoDefense()).tensors, send(Compress(codec="int8")).tensors
    for name, tensor in plain.items():
        step = tensor.abs().max().double() / 127
        if step == 0:
            assert (sent[name] == 0).all()
            continue
        levels = sent[name].double() / step
        assert (levels - levels.round()).abs().max() < 1e-4
        assert levels.round().abs().max() == 127
        assert (sent[name] - tensor).abs().max() <= 0.5001 * step


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_qsgd_is_on_its_grid_within_one_step(bits: int) -> None:
    bucket, levels = 64, 2 ** (bits - 1) - 1
    plain = flat(send(NoDefense()).tensors).double()
    sent = flat(send(Compress(codec="qsgd", bits=bits, bucket=bucket)).tensors).double()
    for before, after in zip(plain.split(bucket), sent.split(bucket), strict=True):
        step = before.norm() / levels
        if step == 0:
            assert (after == 0).all()
            continue
        codes = after / step
        assert (codes - codes.round()).abs().max() < 1e-4
        assert codes.round().abs().max() <= levels
        assert (after - before).abs().max() <= step * 1.0001
        assert (after * before >= 0).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_qsgd_is_unbiased(bits: int) -> None:
    repeats, levels = 4000, 2 ** (bits - 1) - 1
    plain = torch.randn(50, generator=generator("unbiased"))
    # One message of many copies: each bucket of 25 entries is rounded by itself.
    content = encode_qsgd({"w": plain.repeat(repeats)}, bits, 25, generator("rounding", bits))
    mean = decode(content, {"w": (repeats, 50)})["w"].double().mean(0)
    for expected, got in zip(plain.double().split(25), mean.split(25), strict=True):
        step = expected.norm() / levels
        part = (expected.abs() / step) % 1
        # Each draw is a Bernoulli step; 50 entries, so 6 standard errors and not 3.
        error = 6 * step * (part * (1 - part) / repeats).sqrt()
        assert ((got - expected).abs() <= error + 1e-6).all()


# ---- codecs

SHAPES = {"a": (3, 5), "b": (), "c": (2, 1, 7)}
CODECS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "sparse gaps": lambda tensors: encode_sparse(tensors, 2),
    "sparse mask": lambda tensors: encode_sparse(tensors, 20),
    "int8": encode_int8,
    "qsgd": lambda tensors: encode_qsgd(tensors, 3, 4, generator("codec")),
    "terngrad": lambda tensors: encode_ternary(tensors, generator("codec")),
    "sign": encode_sign,
    "fp16": lambda tensors: encode_float(tensors, "fp16"),
    "bf16": lambda tensors: encode_float(tensors, "bf16"),
    "fp8": lambda tensors: encode_float(tensors, "fp8"),
    "low rank": lambda tensors: encode_low_rank(
        tensors, {"a": (tensors["a"][:, :2].contiguous(), torch.ones(5, 2))}
    ),
}
codecs = pytest.mark.parametrize("codec", CODECS)


def _tensors(scale: float = 1.0) -> dict[str, Tensor]:
    numbers = generator("codec tensors")
    return {name: scale * torch.randn(shape, generator=numbers) for name, shape in SHAPES.items()}


@codecs
def test_codec_refuses_every_cut_and_every_flipped_byte(codec: str) -> None:
    content = CODECS[codec](_tensors())
    assert list(decode(content, SHAPES)) == list(SHAPES)
    for length in range(len(content)):
        with pytest.raises(InputError, match="message"):
            decode(content[:length], SHAPES)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        with pytest.raises(InputError, match="message"):
            decode(bytes(damaged), SHAPES)


@codecs
def test_codec_refuses_other_shapes_and_longer_messages(codec: str) -> None:
    content = CODECS[codec](_tensors())
    with pytest.raises(InputError, match="holds 30 entries, the shapes ask for 15"):
        decode(content, {"a": (3, 5)})
    with pytest.raises(InputError, match="message"):
        decode(content + b"\0", SHAPES)


@codecs
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_codec_refuses_what_is_not_finite(codec: str, value: float) -> None:
    tensors = _tensors()
    tensors["c"][1, 0, 3] = value
    with pytest.raises(InputError, match="tensor 'c' holds NaN"):
        CODECS[codec](tensors)


@codecs
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30])
def test_codec_survives_extreme_scales(codec: str, scale: float) -> None:
    tensors = _tensors(scale)
    if codec == "fp16" and scale > 1:
        with pytest.raises(InputError, match=r"fp16 codec: an entry of .* exceeds 65504"):
            CODECS[codec](tensors)
        return
    decoded = decode(CODECS[codec](tensors), SHAPES)
    assert all(torch.isfinite(tensor).all() for tensor in decoded.values())
    largest = flat(tensors).abs().max()
    assert (flat(decoded) - flat(tensors)).abs().max() <= (4 if codec == "low rank" else 2) * largest


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=70),
    bits=st.integers(2, 8),
    bucket=st.integers(1, 80),
    data=st.data(),
)
def test_codecs_round_trip_any_vector(
    values: list[float], bits: int, bucket: int, data: st.DataObject
) -> None:
    tensor = torch.tensor(values)
    keep = data.draw(st.integers(1, len(values)))
    shapes = {"w": (len(values),)}
    sparse = decode(encode_sparse({"w": tensor}, keep), shapes)["w"]
    assert (sparse - tensor).abs().sort().values[: len(values)][:keep].max() == 0
    assert torch.equal(sparse[sparse != 0], tensor[sparse != 0])
    small = decode(encode_int8({"w": tensor}), shapes)["w"]
    assert (small - tensor).abs().max() <= 0.5001 * tensor.abs().max() / 127 + 1e-44
    rough = decode(encode_qsgd({"w": tensor}, bits, bucket, generator(0)), shapes)["w"]
    assert (rough - tensor).abs().max() <= 1.0001 * tensor.double().norm() / (2 ** (bits - 1) - 1) + 1e-44


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: encode_sparse(_tensors(), 0), "keep is 0, expected 1 to 30"),
        (lambda: encode_sparse(_tensors(), 31), "keep is 31"),
        (lambda: encode_qsgd(_tensors(), 1, 4, generator(0)), "bits=1"),
        (lambda: encode_qsgd(_tensors(), 4, 0, generator(0)), "bucket=0"),
        (lambda: encode_qsgd({"w": torch.full((9,), 3e38)}, 4, 9, generator(0)), "norm of a bucket exceeds"),
        (lambda: encode_int8({"w": torch.zeros(0)}), "nothing to encode"),
        (lambda: decode(b"x" * 64, SHAPES), "not an encoded vleak update"),
        (lambda: decode(b"", SHAPES), "shorter than its header"),
    ],
)
def test_codec_refusals(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
