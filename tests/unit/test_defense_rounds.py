"""Defenses that carry something from round to round: adaptive clipping, and DGC with its momentum."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny import Conv, batch, build
from torch import Tensor

from vleak.certificates.gaussian import gaussian_epsilon, training_epsilon
from vleak.defenses import Defense, Dgc, DpAdaptive, DpClientAdaptive, DpSgd, Prune
from vleak.defenses.dp_adaptive import gradient_noise
from vleak.defenses.dp_checks import per_clip_norms
from vleak.errors import InputError
from vleak.federated import Client, LocalTraining, Update, per_clip_gradients, steps
from vleak.federated.losses import LOSSES
from vleak.seeds import generator

Gradient = dict[str, Tensor]


def norms(count: int) -> Tensor:
    model, (clips, labels) = build(Conv).eval(), batch(count)
    return per_clip_norms(per_clip_gradients(model, LOSSES["cross_entropy"], clips, labels))


def rounds_of(defense: Defense, count: int, clips: int = 8) -> list[Update]:
    client, memory, draws = Client(build(Conv), defense=defense), dict[str, Tensor](), generator("rounds")
    return [client.update(*batch(clips), draws, memory) for _ in range(count)]


@pytest.mark.parametrize("quantile", [0.25, pytest.param(0.75, marks=pytest.mark.slow)])
def test_the_norm_finds_the_quantile(quantile: float) -> None:
    defense = DpAdaptive(
        noise_multiplier=1e-3, max_grad_norm=40.0, quantile=quantile, learning_rate=0.3, count_noise=1e-2
    )
    updates = rounds_of(defense, 30)
    found = [update.metrics["clipping_norm"] for update in updates]
    assert found[0] == 40.0
    ordered = norms(8).sort().values
    low, high = ordered[int(quantile * 8) - 1], ordered[int(quantile * 8)]
    assert 0.95 * low <= found[-1] <= 1.05 * high
    assert updates[0].wire_bytes == 4 * sum(t.numel() for t in updates[0].tensors.values()) + 4


def test_a_round_is_dp_sgd_of_its_norm_and_of_the_noise_that_is_left() -> None:
    defense = DpAdaptive(noise_multiplier=1e-4, max_grad_norm=0.2, count_noise=0.3)
    client = Client(build(Conv), defense=defense)
    for update in rounds_of(defense, 3):
        norm, channel = update.metrics["clipping_norm"], client.channel(update)
        plain = DpSgd(noise_multiplier=gradient_noise(1e-4, 0.3), max_grad_norm=norm)
        clean = Client(build(Conv), defense=DpSgd(noise_multiplier=0.0, max_grad_norm=norm)).update(
            *batch(8), generator(0)
        )
        expected = plain.channel(update)
        assert channel is not None
        assert expected is not None
        assert channel.clip_norm == expected.clip_norm == norm
        assert channel.noise_deviation == expected.noise_deviation
        gaps = torch.cat([(update.tensors[n] - clean.tensors[n]).flatten() for n in clean.tensors]).double()
        assert float(gaps.square().sum()) == pytest.approx(channel.noise_energy, rel=0.1)
    local = Client(build(Conv), defense=defense, local=LocalTraining(steps=2))
    assert local.channel(local.update(*batch(2), generator(0))) is None


def test_gradients_and_count_together_prove_what_the_multiplier_does() -> None:
    for defense in (DpAdaptive(noise_multiplier=0.8, count_noise=0.5),
                    DpClientAdaptive(noise_multiplier=0.8, count_noise=0.5)):  # fmt: skip
        gradients = gradient_noise(0.8, 0.5)
        # Gaussian mechanisms compose by the squares of sensitivity over noise; the count's is 1/2.
        assert (gradients**-2 + (0.5 / 0.5) ** 2) ** -0.5 == pytest.approx(0.8)
        privacy = defense.privacy()
        assert privacy is not None
        assert privacy.epsilon == pytest.approx(gaussian_epsilon(0.8, 1e-5))
    run = DpAdaptive(rounds=100, sample_rate=0.02).privacy()
    assert run is not None
    assert run.training_epsilon == training_epsilon(1.0, 1e-5, 100, 0.02)[0]


def test_a_client_moves_its_norm_by_its_own_bit() -> None:
    defense = DpClientAdaptive(noise_multiplier=1e-3, max_norm=50.0, learning_rate=0.5, count_noise=1e-2)
    updates = rounds_of(defense, 40, clips=1)
    found = [update.metrics["clipping_norm"] for update in updates]
    truth = float(norms(1)[0])
    assert found[0] == 50.0
    assert 0.7 * truth < found[-1] < 1.5 * truth  # it goes up and down by a quarter around the norm
    assert Client(build(Conv), defense=defense).channel(updates[-1]).clip_norm == found[-1]  # type: ignore[union-attr]


# ---- DGC


def by_hand(gradients: list[Tensor], kept: int, momentum: float) -> list[Tensor]:
    """Return what Algorithm 4 of the paper sends of vectors (n,), one a round."""
    u, v, sent = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0]), []
    for gradient in gradients:
        u = momentum * u + gradient
        v = v + u
        mask = torch.zeros_like(v, dtype=torch.bool)
        mask[v.abs().topk(kept).indices] = True
        sent.append(v * mask)
        u, v = u * ~mask, v * ~mask
    return sent


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_dgc_sends_what_the_algorithm_does(momentum: float) -> None:
    draws, memory = generator("dgc"), Gradient()
    gradients = [torch.randn(200, generator=draws) for _ in range(12)]
    expected = by_hand(gradients, 20, momentum)
    for gradient, right in zip(gradients, expected, strict=True):
        message = steps.transmit(Dgc(fraction=0.9, momentum=momentum), {"w": gradient}, draws, memory)
        torch.testing.assert_close(message.tensors["w"], right)
        assert message.wire_bytes < 200 * 4


def test_dgc_without_momentum_is_pruning_with_error_feedback() -> None:
    draws, one, other = generator("dgc"), Gradient(), Gradient()
    for _ in range(6):
        gradient = {"w": torch.randn(100, generator=draws)}
        mine = steps.transmit(Dgc(fraction=0.9, momentum=0.0), gradient, draws, one).tensors
        plain = steps.transmit(Prune(fraction=0.9, error_feedback=True), gradient, draws, other).tensors
        torch.testing.assert_close(mine["w"], plain["w"])


def test_dgc_clips_before_it_adds() -> None:
    gradient, memory = {"w": torch.full((4,), 3.0)}, Gradient()
    sent = steps.transmit(Dgc(fraction=0.0, max_norm=1.0), gradient, generator(0), memory).tensors["w"]
    torch.testing.assert_close(sent, torch.full((4,), 0.5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dgc(fraction=1.0), "dgc: fraction is 1.0, expected a number in"),
        (lambda: Dgc(fraction=math.nan), "dgc: fraction is nan"),
        (lambda: Dgc(momentum=1.0), "dgc: momentum is 1.0"),
        (lambda: Dgc(max_norm=-1.0), "dgc: max_norm is -1.0"),
        (lambda: Dgc(max_norm=math.inf), "dgc: max_norm is inf"),
        (lambda: Dgc(max_norm=1e-13), "dgc: max_norm is 1e-13, expected 0 or at least 1e-12"),
        (lambda: DpAdaptive(quantile=1.5), "dp_adaptive: quantile is 1.5, expected a number from 0 to 1"),
        (lambda: DpAdaptive(learning_rate=0.0), "dp_adaptive: learning_rate is 0.0"),
        (lambda: DpAdaptive(count_noise=math.nan), "dp_adaptive: count_noise is nan"),
        (
            lambda: DpAdaptive(noise_multiplier=2.0),
            "dp_adaptive: count_noise is 1.0, .* expected more than 1",
        ),
        (
            lambda: DpClientAdaptive(noise_multiplier=3.0),
            "dp_client_adaptive: count_noise is 1.0, .* than 1.5",
        ),
        (lambda: DpClientAdaptive(max_norm=math.inf), "dp_client_adaptive: max_norm is inf"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
