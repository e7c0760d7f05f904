"""Defenses that act on the message: what pruning, codecs, noise and frameworks' rules do to an update."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import Conv, batch, build
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.certificates.gaussian import gaussian_delta
from vleak.defenses import (
    Censor,
    Composite,
    Compress,
    DpClient,
    DpSgd,
    FlowerClipping,
    FlowerLocalDp,
    Noise,
    NvflarePercentile,
    NvflareSvt,
    OptimalNoise,
    Outpost,
    PowerSgd,
    Prune,
    PruneDual,
    defense_text,
    parse_defenses,
)
from vleak.defenses.codecs import decode, encode_float, encode_sign, encode_ternary
from vleak.defenses.lowrank import power_step
from vleak.errors import CapabilityError, InputError
from vleak.federated import Client, Defense, LocalTraining, PublicFacts, Update, mean_gradient, steps
from vleak.seeds import generator

Gradient = dict[str, Tensor]


def dense(scale: float = 1.0) -> Gradient:
    draws = generator("dense")
    shapes = {"a": (40, 5, 3, 2), "b": (), "c": (333,), "d": (12, 50)}
    return {name: scale * torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def flat(tensors: Gradient) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def sent(defense: Defense, gradient: Gradient | None = None, *seed: object) -> Gradient:
    return defense.transmit(dense() if gradient is None else gradient, generator("sent", *seed)).tensors


def rounds(defense: Defense, count: int) -> list[Gradient]:
    """Return what arrives of one gradient in several rounds."""
    memory: Gradient = {}
    draws = generator("rounds")
    return [steps.transmit(defense, dense(), draws, memory).tensors for _ in range(count)]


# ---- pruning


def test_random_entries_are_drawn_anew_and_sent_as_they_are() -> None:
    plain = flat(dense())
    masks = []
    for seed in range(2):
        arrived = flat(sent(Prune(fraction=0.75, which="random"), None, seed))
        masks.append(arrived != 0)
        assert int(masks[-1].sum()) == round(0.25 * len(plain))
        assert torch.equal(arrived[masks[-1]], plain[masks[-1]])
    both = int((masks[0] & masks[1]).sum())
    assert both == pytest.approx(len(plain) / 16, rel=0.35)


def test_threshold_keeps_all_above_it_and_at_least_one_entry() -> None:
    plain = flat(dense())
    arrived = flat(sent(Prune(which="threshold", threshold=1.5)))
    assert torch.equal(arrived, torch.where(plain.abs() >= 1.5, plain, 0.0))
    alone = flat(sent(Prune(which="threshold", threshold=100.0)))
    assert alone.nonzero().tolist() == [[int(plain.abs().argmax())]]


@pytest.mark.parametrize("largest", [0.0, 0.05, 0.5])
def test_dual_pruning_drops_both_ends_of_every_tensor(largest: float) -> None:
    arrived = sent(PruneDual(largest=largest, smallest=0.3))
    for name, tensor in dense().items():
        ordered, count = tensor.flatten().abs().sort().values, tensor.numel()
        low, high = int(0.3 * count), count - int(largest * count)
        kept = arrived[name] != 0
        assert torch.equal(arrived[name][kept], tensor[kept])
        assert arrived[name][kept].abs().sort().values.tolist() == ordered[low:high].tolist()


@pytest.mark.parametrize(
    "defense",
    [
        Prune(which="random", error_feedback=True),
        Prune(which="threshold", threshold=2.0, error_feedback=True),
        Compress(codec="sign", error_feedback=True),
        Compress(codec="fp8", error_feedback=True),
        PowerSgd(rank=4),
    ],
    ids=lambda defense: defense.label,
)
def test_error_feedback_makes_good_over_rounds(defense: Defense) -> None:
    plain, arrived = flat(dense()), [flat(tensors) for tensors in rounds(defense, 40)]
    gaps = [float((total / (n + 1) - plain).norm() / plain.norm())
            for n, total in enumerate(torch.stack(arrived).cumsum(0))]  # fmt: skip
    assert gaps[-1] < 0.35 * gaps[0]


# ---- codecs


@pytest.mark.parametrize(("name", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_what_torch_rounds_to(name: str, kind: torch.dtype) -> None:
    plain = dense(100.0) | {"tiny": torch.tensor([1e-7, -3e-8, 6e-5, 0.0])}
    shapes = {key: tuple(tensor.shape) for key, tensor in plain.items()}
    arrived = decode(encode_float(plain, name), shapes)
    for key, tensor in plain.items():
        assert torch.equal(arrived[key], tensor.to(kind).float())


def test_fp8_is_on_the_grid_that_its_scale_sets() -> None:
    arrived = sent(Compress(codec="fp8"))
    for name, tensor in dense().items():
        scale = tensor.abs().max() / 448
        expected = (tensor.double() / scale).float().clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        torch.testing.assert_close(arrived[name], expected, rtol=1e-6, atol=0.0)
        assert arrived[name].abs().max() == pytest.approx(float(tensor.abs().max()), rel=1e-6)


def test_signs_come_with_their_mean_magnitude() -> None:
    plain = {"w": torch.tensor([3.0, -1.0, 0.0, -4.0]), "v": torch.tensor([-2.0])}
    arrived = decode(encode_sign(plain), {"w": (4,), "v": (1,)})
    assert arrived["w"].tolist() == [2.0, -2.0, 2.0, -2.0]
    assert arrived["v"].tolist() == [-2.0]


def test_ternary_entries_are_unbiased() -> None:
    plain, repeats = torch.randn(50, generator=generator("ternary")), 4000
    content = encode_ternary({"w": plain.repeat(repeats)}, generator("rounding"))
    arrived = decode(content, {"w": (repeats, 50)})["w"]
    scale = float(plain.abs().max())
    assert sorted(set(arrived.flatten().tolist())) == pytest.approx([-scale, 0.0, scale])
    chance = plain.abs() / scale
    error = 6 * scale * (chance * (1 - chance) / repeats).sqrt()
    assert ((arrived.mean(0) - plain).abs() <= error + 1e-5).all()


# ---- low rank


def test_a_power_step_is_the_projection_onto_the_columns() -> None:
    matrix = dense()["d"]
    left, right = power_step(matrix, torch.randn(50, 3, generator=generator("start")))
    torch.testing.assert_close(left.T @ left, torch.eye(3), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(left @ right.T, left @ left.T @ matrix, rtol=1e-5, atol=1e-5)


def test_warm_start_finds_the_best_matrix_of_its_rank() -> None:
    matrix = dense()["d"]
    values = torch.linalg.svdvals(matrix)
    best = float(values[2:].norm())
    memory: Gradient = {}
    draws = generator("warm")
    errors = []
    for _ in range(60):
        arrived = PowerSgd(error_feedback=False).transmit_in_round({"d": matrix}, draws, memory).tensors["d"]
        errors.append(float((arrived - matrix).norm()))
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_tensors_that_low_rank_does_not_touch_arrive_whole() -> None:
    arrived = sent(PowerSgd(rank=12))
    for name in ("b", "c", "d"):
        assert torch.equal(arrived[name], dense()[name])
    assert torch.linalg.matrix_rank(arrived["a"].flatten(1)) == 12


def test_channel_of_low_rank_knows_what_was_measured() -> None:
    defense, gradient = PowerSgd(rank=2), dense()
    update = Update(sent(defense), 0)
    measured = defense.channel(update).measured(gradient)
    for name, tensor in update.tensors.items():
        torch.testing.assert_close(measured[name], tensor, rtol=1e-4, atol=1e-4)
    assert set(defense.channel(update).bases or {}) == {"a", "d"}


class Held(nn.Module):
    """A parameter whose gradient is what the module is called with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, gradient: Tensor) -> Tensor:
        return (self.weight * gradient).sum()


@contextmanager
def hooked(gradient: Tensor, state: object, hook: Callable[..., Any]) -> Iterator[Callable[[], Tensor]]:
    """Give what torch's hook makes of a gradient, one process alone."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            module = nn.parallel.DistributedDataParallel(Held(gradient.shape))
            module.register_comm_hook(state, hook)

            def synchronised() -> Tensor:
                module.zero_grad()
                module(gradient).backward()
                return module.module.weight.grad.clone()

            yield synchronised
        finally:
            dist.destroy_process_group()


@pytest.mark.slow
def test_low_rank_is_what_torchs_hook_sends() -> None:
    """From the same start the same over rounds, with error feedback and warm start."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as hook

    matrix, start = dense()["d"], torch.randn(50, 2, generator=generator("start"))
    state = hook.PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=2, min_compression_rate=0.1
    )
    state.iter = 2
    state.p_memory_dict[0], state.q_memory_dict[0] = torch.empty(12 * 2), start.flatten().clone()
    draws, memory = generator("unused"), {"powersgd/d": start}
    with hooked(matrix, state, hook.powerSGD_hook) as theirs:
        for _ in range(4):
            ours = steps.transmit(PowerSgd(rank=2), {"d": matrix}, draws, memory).tensors["d"]
            torch.testing.assert_close(ours, theirs(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_fp16_is_what_torchs_hook_sends() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    plain = dense(10.0)["c"]
    with hooked(plain, None, fp16_compress_hook) as theirs:
        assert torch.equal(sent(Compress(codec="fp16"), {"c": plain})["c"], theirs())


# ---- noise


def aggregated(defense: Defense, *seed: object, scale: float = 1.0) -> tuple[Gradient, Gradient]:
    """Return what a defense makes of a batch, and the gradient of that batch."""
    model, (clips, labels) = build(Conv).eval(), batch()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return scale * F.cross_entropy(logits, labels)

    made = defense.aggregate(model, loss, clips, labels, generator("aggregated", *seed))
    return made, mean_gradient(model, loss, clips, labels)


def test_noise_states_no_epsilon_and_sends_what_dp_client_does() -> None:
    noise = Noise(deviation=0.5, max_norm=2.0)
    proving = DpClient(noise_multiplier=0.25, max_norm=2.0)
    assert noise.privacy() is None
    assert proving.privacy() is not None
    assert torch.equal(flat(sent(noise)), flat(sent(proving)))


def test_optimal_noise_has_its_energy_and_follows_the_jacobian() -> None:
    defense = OptimalNoise(deviation=0.1, probes=64)
    model, (clips, labels) = build(Conv).eval(), batch(1)
    plain = mean_gradient(model, F.cross_entropy, clips, labels)
    squares = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    runs = 300
    estimate = defense._row_norms(model, F.cross_entropy, clips, labels, generator("rows"))
    for index in range(runs):
        draws = generator("noise", index)
        scale = flat(estimate).mean()
        for name, row in estimate.items():
            squares[name] += (
                0.01 * (row / scale).float() * torch.randn(row.shape, generator=draws) ** 2 / runs
            )
    one = defense.aggregate(model, F.cross_entropy, clips, labels, generator("one"))
    energy = float((flat(one) - flat(plain)).double().square().sum())
    assert energy == pytest.approx(defense.channel(Update(one, 0)).noise_energy, rel=0.3)  # type: ignore[union-attr]
    # Row norms by the full Jacobian of the last layer's gradient.
    x = clips.clone().requires_grad_()
    weight = dict(model.named_parameters())["head.bias"]
    gradient = torch.autograd.grad(F.cross_entropy(model(x), labels), weight, create_graph=True)[0]
    exact = torch.stack(
        [torch.autograd.grad(g, x, retain_graph=True)[0].double().norm() for g in gradient.flatten()]
    )
    torch.testing.assert_close(estimate["head.bias"], exact, rtol=0.4, atol=1e-6)


def test_optimal_noise_in_a_delta_is_known_for_plain_sgd_alone() -> None:
    update = Update({"w": torch.zeros(10)}, 0)
    steps_of = LocalTraining(steps=4, learning_rate=0.5)
    delta = Update({"w": torch.zeros(10)}, 0, PublicFacts(kind="fedavg", local=steps_of))
    channel, ahead = OptimalNoise(deviation=1.0).channel(update), OptimalNoise(deviation=1.0).channel(delta)
    assert channel is not None
    assert ahead is not None
    assert (channel.noise_energy, ahead.noise_energy) == (10.0, 10.0)
    adam = PublicFacts(kind="fedavg", local=LocalTraining(optimizer="adam"))
    assert OptimalNoise().channel(Update({"w": torch.zeros(10)}, 0, adam)) is None


def test_outpost_prunes_and_disturbs_the_risky_entries() -> None:
    defense = Outpost(noise=0.8, perturbed=0.4, pruned=0.8)
    made, plain = aggregated(defense)
    squares = flat(plain).square()
    risky = squares >= squares.quantile(0.6)
    weights = build(Conv).state_dict()
    for name, tensor in plain.items():
        if tensor.ndim == 0:
            continue
        least = tensor.abs().flatten().quantile(0.8)
        kept = torch.where(tensor.abs() >= least, tensor, 0.0)
        unlike = (made[name] - kept).abs() > 1e-7
        assert not (unlike & (tensor.square() < squares.quantile(0.6))).any()
        noise = (made[name] - kept)[tensor.square() >= squares.quantile(0.6)]
        if len(noise) > 50:
            expected = 0.8 * float(weights[name].var(correction=0))
            assert float(noise.std()) == pytest.approx(expected, rel=0.25)
    assert int(risky.sum()) == pytest.approx(0.4 * len(squares), abs=2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_censor_sends_nothing_along_any_tensors_gradient_and_its_norm(scale: float) -> None:
    made, plain = aggregated(Censor(trials=3), scale=scale)
    for name, tensor in plain.items():
        norm = tensor.double().norm()
        along = (made[name].double() * tensor.double()).sum()
        assert abs(along) <= 1e-5 * norm**2
        assert float(made[name].double().norm()) == pytest.approx(float(norm), rel=1e-5)


def test_censor_chooses_the_draw_with_the_lowest_loss() -> None:
    model, (clips, labels) = build(Conv).eval(), batch()
    losses = []
    for trials in (1, 30):
        defense = Censor(trials=trials, learning_rate=0.05)
        made = defense.aggregate(model, F.cross_entropy, clips, labels, generator("censor"))
        losses.append(defense._loss_after(model, F.cross_entropy, clips, labels, made))
    assert losses[1] < losses[0]


# ---- rules of frameworks


def test_percentile_privacy_by_hand() -> None:
    values = torch.tensor([0.001, -0.004, 0.006, -0.02, 0.5, -0.0002, 0.009, 0.0075])
    arrived = sent(NvflarePercentile(percentile=50.0), {"w": values, "scalar": torch.tensor(7.0)})
    # The middle of nine magnitudes, the scalar's among them, is 0.0075, which stays.
    expected = torch.tensor([0.0, 0.0, 0.0, -0.01, 0.01, 0.0, 0.009, 0.0075])
    torch.testing.assert_close(arrived["w"], expected)
    assert float(arrived["scalar"]) == 7.0


def test_channel_of_percentile_privacy_is_exact_or_says_that_it_is_rough() -> None:
    gradient = dense(0.005)
    for gamma, rough in ((0.01, False), (0.0001, True)):
        defense = NvflarePercentile(gamma=gamma)
        update = Update(sent(defense, gradient), 0)
        channel = defense.channel(update)
        assert channel.masks is not None
        mask = flat(channel.masks)
        assert (channel.noise_energy > 0) == rough
        assert torch.equal(flat(update.tensors)[mask], flat(gradient)[mask]) != rough
        assert int(mask.sum()) > 0.5 * len(mask)


def test_sparse_vector_privacy_sends_a_part_cut_off_and_with_noise() -> None:
    gradient = {name: tensor for name, tensor in dense().items() if tensor.ndim}
    defense = NvflareSvt(epsilon=1e5, fraction=0.2, gamma=0.5, noise_var=50.0, tau=0.4)
    arrived, plain = flat(sent(defense, gradient)), flat(gradient)
    kept = arrived != 0
    # Drawn with replacement of those accepted, so fewer than a fifth are different entries.
    assert 0.1 * len(plain) < int(kept.sum()) < 0.2 * len(plain)
    assert plain.abs()[kept].min() > 0.3
    noise = arrived[kept] - plain[kept].clamp(-0.5, 0.5)
    assert float(noise.abs().mean()) == pytest.approx(2 * 0.5 / 50.0, rel=0.2)


def test_sparse_vector_privacy_spends_more_than_is_asked() -> None:
    asked, proven = NvflareSvt().epsilon_of(700_000)
    assert asked == pytest.approx(7_000.1)
    assert proven == pytest.approx(3_500 + 1, rel=1e-3)
    # One entry, drawn from one: threshold and query are all that is spent on choosing it.
    asked, proven = NvflareSvt(epsilon=2.0, noise_var=1.0).epsilon_of(1)
    assert (asked, proven) == pytest.approx((3.0, 2.5))


def test_sparse_vector_privacy_gives_up_instead_of_sending() -> None:
    gradient = {"w": torch.zeros(100)}
    with pytest.raises(CapabilityError, match="fewer than 10 entries reached the threshold"):
        sent(NvflareSvt(epsilon=1e9, tau=1.0), gradient)
    with pytest.raises(CapabilityError, match="NaN or infinity; nothing was sent"):
        sent(NvflareSvt(), {"w": torch.full((100,), math.nan)})


def test_flowers_fixed_clipping_is_clipping() -> None:
    norm = float(flat(dense()).norm())
    for limit in (0.5 * norm, 2 * norm):
        arrived = flat(sent(FlowerClipping(clipping_norm=limit)))
        torch.testing.assert_close(arrived, flat(dense()) * min(1.0, limit / norm))


def test_flowers_adaptive_norm_runs_away_from_the_quantile() -> None:
    norm = float(flat(dense()).norm())
    clips = [float(flat(t).norm()) for t in rounds(FlowerClipping(clipping_norm=norm / 2, adaptive=True), 4)]
    factor = math.exp(-0.2 * 0.5)
    assert clips == pytest.approx([norm / 2 * factor**n for n in range(4)], rel=1e-5)
    for gentle in rounds(FlowerClipping(clipping_norm=2 * norm, adaptive=True), 3):
        torch.testing.assert_close(flat(gentle), flat(dense()))


def test_flowers_local_dp_proves_what_its_noise_gives() -> None:
    asked = FlowerLocalDp(epsilon=16.0)
    proven = asked.privacy()
    assert proven is not None
    assert proven.epsilon > 18
    assert gaussian_delta(16.0, asked.noise_multiplier) == pytest.approx(3.4e-4, rel=0.05)
    # A sensitivity below the clipping norm is not checked by Flower, and takes the guarantee.
    small = FlowerLocalDp(epsilon=1.0, clipping_norm=10.0, sensitivity=0.1).privacy()
    assert small is not None
    assert small.epsilon > 100
    assert FlowerLocalDp(epsilon=0.5).privacy().epsilon < 0.5  # type: ignore[union-attr]
    assert FlowerLocalDp(sensitivity=0.0).privacy() is None
    with pytest.raises(InputError, match=r"epsilon is 1e-06, out of reach: .* give an epsilon from 4.84e-06"):
        FlowerLocalDp(epsilon=1e-6)
    assert FlowerLocalDp(epsilon=4.85e-6).noise_multiplier < 1e6


# ---- several in one client


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("dp:noise_multiplier=1.0+prune:fraction=0.9", "dp σ=1 + prune 90 %"),
        ("prune:fraction=0.9+dp_client:noise_multiplier=0.1", "prune 90 % + client σ=0.1"),
        ("dp:noise_multiplier=0.1+prune:fraction=0.5+compress:codec=fp16",
         "dp σ=0.1 + prune 50 % + fp16"),
    ],
)  # fmt: skip
def test_composites_as_text(text: str, label: str) -> None:
    (defense,) = parse_defenses(text)
    assert defense_text(defense) == text
    assert defense.label == label
    assert defense.name == "+".join(part.partition(":")[0] for part in text.split("+"))
    assert all(type(value) in (int, float, str, bool) for value in defense.settings().values())


def test_the_first_bare_name_of_a_composite_sweeps() -> None:
    found = [defense_text(defense) for defense in parse_defenses("dp+prune")]
    assert found == [f"dp:noise_multiplier={noise}+prune:fraction=0.9" for noise in (0.001, 0.01, 0.1, 1.0)]
    found = [defense_text(defense) for defense in parse_defenses("dp:noise_multiplier=1+prune")]
    assert found == [f"dp:noise_multiplier=1.0+prune:fraction={part}" for part in (0.7, 0.9, 0.99, 0.999)]
    (number,) = parse_defenses("nvflare_percentile:gamma=1e+16")
    assert parse_defenses(defense_text(number)) == [number]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dp+none", "none does nothing; leave it out"),
        ("prune+prune", "prune is in it twice"),
        ("prune+dp", r"prune acts on the message, after dp acts on .* the clips; write dp\+prune"),
        ("dp+outpost", "both act on the gradients of the clips; choose one"),
        ("dp+dp_client", "dp and dp_client each prove something"),
        ("prune:error_feedback=true+dp_client", "prune has error feedback and dp_client has none"),
        ("masks+secure_sum:clients=2", "masks cancel in the sum over clients, .*; take secure_sum alone"),
        ("masks+prune", r"of messages that nothing else was done to; write prune\+masks"),
        ("dp+masks+compress", r"write compress\+masks"),
        ("dp+prunes", "unknown defense 'prunes'; did you mean prune"),
        ("dp+", r"unknown defense 'dp\+'; did you mean dp"),
    ],
)
def test_defenses_that_do_not_go_together(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_defenses(text)


def test_a_composite_is_its_stages_one_after_the_other() -> None:
    model, (clips, labels) = build(Conv).eval(), batch()
    (defense,) = parse_defenses("dp:noise_multiplier=0.5+prune:fraction=0.9")
    draws = generator("composite")
    noisy = DpSgd(noise_multiplier=0.5).aggregate(model, F.cross_entropy, clips, labels, draws)
    message = Prune(fraction=0.9).transmit(noisy, draws)
    update = Client(model, defense=defense).update(clips, labels, generator("composite"))
    assert torch.equal(flat(update.tensors), flat(message.tensors))
    assert update.wire_bytes == message.wire_bytes


def test_a_composite_proves_what_its_stage_proves() -> None:
    assert parse_defenses("dp:noise_multiplier=1+prune:fraction=0.9")[0].privacy() == DpSgd().privacy()
    assert parse_defenses("dp:noise_multiplier=1+compress:codec=sign")[0].privacy_of(
        2, 3
    ) == DpSgd().privacy_of(2, 3)
    assert parse_defenses("outpost:noise=1+dp_client:noise_multiplier=1")[0].privacy() == DpClient().privacy()
    assert parse_defenses("prune:fraction=0.5+compress:codec=fp16")[0].privacy() is None


def test_a_composite_claims_no_noise_of_one_stage_where_another_adds_some() -> None:
    (noisy,) = parse_defenses("dp:noise_multiplier=1.0+masks:deviation=0.001")
    (plain,) = parse_defenses("prune:fraction=0.5+masks:deviation=0.001")
    assert "Gaussian noise" not in [claim.name for claim in noisy.claims()]
    assert "Gaussian noise" in [claim.name for claim in plain.claims()]


class Mixing(Defense):
    """Every clip is the mean of the batch."""

    def prepare_clips(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return clips.mean(0).expand_as(clips).clone(), labels


def test_of_clips_that_were_mixed_before_nothing_is_proven() -> None:
    assert Composite(stages=(Mixing(), DpSgd())).privacy() is None
    assert Composite(stages=(Mixing(), DpClient())).privacy() == DpClient().privacy()


def test_channel_of_a_composite_has_what_is_left_of_each() -> None:
    model, (clips, labels) = build(Conv).eval(), batch(1)
    defense = Composite(stages=(DpSgd(noise_multiplier=0.01, max_grad_norm=0.5), Prune(fraction=0.9)))
    client = Client(model, defense=defense)
    update = client.update(clips, labels, generator("channel"))
    channel = client.channel(update)
    assert channel is not None
    assert channel.masks is not None
    kept = flat(channel.masks)
    entries = len(kept)
    assert torch.equal(kept, flat(update.tensors) != 0)
    assert (channel.clip_norm, channel.noise_deviation) == (0.5, None)
    assert channel.kept_fraction == pytest.approx(0.1)
    assert 0.005**2 * int(kept.sum()) < channel.noise_energy < 0.005**2 * entries
    assert int(kept.sum()) == round(0.1 * entries)
    quantised = Composite(stages=(DpSgd(noise_multiplier=0.01), Compress(codec="sign")))
    told = quantised.channel(Client(model, defense=quantised).update(clips, labels, generator("channel")))
    assert told is not None
    assert told.noise_deviation is None  # it is no longer Gaussian
    client_noise = parse_defenses("prune:fraction=0.5+dp_client:noise_multiplier=0.1")[0].channel(update)
    assert client_noise is not None
    assert (client_noise.masks, client_noise.noise_deviation) == (None, 0.1)
    low_rank = parse_defenses("dp:noise_multiplier=0.1+powersgd:rank=1,error_feedback=false")[0]
    projected = low_rank.channel(Client(model, defense=low_rank).update(clips, labels, generator("channel")))
    assert projected is not None
    assert set(projected.bases or {}) == {"conv.weight", "head.weight"}
    # Of 4 x 81 and 5 x 128 numbers 81 and 128 are left, and 10 of the other tensors.
    assert projected.noise_energy == pytest.approx(0.1**2 * (81 + 128 + 10))
    pruned = parse_defenses("powersgd:rank=1,error_feedback=false+prune:fraction=0.5")[0].channel(update)
    assert pruned is not None
    assert pruned.bases is None
    outside = Composite(stages=(Outpost(), Prune()))
    assert outside.channel(update) is None


def test_error_feedback_of_a_composite_is_around_all_of_it() -> None:
    defense = Composite(
        stages=(Prune(fraction=0.9, error_feedback=True), Compress(codec="fp16", error_feedback=True))
    )
    plain, arrived = flat(dense()), [flat(tensors) for tensors in rounds(defense, 40)]
    assert float((sum(arrived) / 40 - plain).norm()) < 0.3 * float((arrived[0] - plain).norm())


def test_transforms_of_a_delta_are_those_of_its_gradient() -> None:
    gradient = dense()
    channel = NvflarePercentile(percentile=50.0, gamma=1.0).channel(Update(gradient, 0))
    scaled = channel.scaled(-0.25)
    assert channel.transform is not None
    assert scaled.transform is not None
    quarter = {name: tensor / 4 for name, tensor in gradient.items()}
    expected = {name: tensor / 4 for name, tensor in channel.transform(gradient).items()}
    torch.testing.assert_close(flat(scaled.transform(quarter)), flat(expected))
