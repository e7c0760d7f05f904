"""Further ceilings: known answers, and simulated attackers who stay below them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from records import make_cell
from tiny import Residual, batch, build
from torch.nn import functional as F

from vleak.certificates import (
    cramer_rao_floor,
    fano_bound,
    gaussian_bits,
    identification_bound,
    jacobian_energy,
    no_prior_floor,
    psnr_ceiling,
    van_trees_floor,
)
from vleak.errors import CapabilityError, InputError
from vleak.federated import Channel, mean_gradient
from vleak.results import summarise
from vleak.results.records import CeilingRecord
from vleak.seeds import generator


def test_fano_has_known_values() -> None:
    assert fano_bound(1024, 0.0) == pytest.approx(0.1)
    assert fano_bound(16, 1.0) == pytest.approx(0.5)
    assert fano_bound(16, 3.0) == fano_bound(16, math.inf) == fano_bound(1, 0.0) == 1.0


@pytest.mark.parametrize("bits", [0, 1, 2, 3])
def test_fano_holds_for_the_best_code(bits: int) -> None:
    # b bits tell 2^b of N clips apart, and nobody is right more often than in 2^b / N.
    assert 2**bits / 64 <= fano_bound(64, bits)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_fano_of_gaussian_noise_is_above_what_the_best_attacker_reaches(noise: float) -> None:
    bits = gaussian_bits(noise, 100_000)
    assert bits == pytest.approx(1 / (2 * math.log(2) * noise**2), rel=1e-4)  # 0.72 / s^2
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    best = float(torch.trapezoid(density * torch.special.ndtr(z + 1 / noise) ** 1023, z))
    assert best < fano_bound(1024, bits)
    assert best < identification_bound(1024, noise)


def test_bits_of_few_entries_and_many_releases() -> None:
    assert gaussian_bits(1.0, 1) == pytest.approx(0.5)  # log2(2) / 2
    assert gaussian_bits(1.0, 1, releases=3) == pytest.approx(1.5)
    assert gaussian_bits(0.0, 5) == math.inf


def test_no_prior_floor_is_the_error_of_who_takes_the_message_as_it_comes() -> None:
    # The clip itself, scaled to the clipping norm of 2, with noise of 0.1 of it.
    clip = torch.rand(3000, generator=generator("clip"))
    noise = 0.1 * 2 * torch.randn(400, 3000, generator=generator("noise"))
    answers = (2 * clip / clip.norm() + noise) * clip.norm() / 2
    error = float((answers - clip).square().mean())
    assert no_prior_floor(0.1, float(clip.norm())) == pytest.approx(error, rel=0.01)
    assert no_prior_floor(0.1, 5.0, releases=4) == pytest.approx(0.25**2)


def linear(n: int = 6) -> tuple[torch.Tensor, float, float]:
    """Return a Jacobian, a deviation of noise and a prior variance."""
    return torch.randn(9, n, generator=generator("jacobian"), dtype=torch.float64), 0.7, 0.3


def test_floors_are_below_the_best_attackers_of_a_linear_message() -> None:
    jacobian, deviation, variance = linear()
    information = jacobian.T @ jacobian / deviation**2
    trace = float(information.trace()) / 6
    least_squares = float(torch.linalg.inv(information).trace()) / 6
    posterior = float(torch.linalg.inv(information + torch.eye(6) / variance).trace()) / 6
    assert 0.1 * least_squares < cramer_rao_floor(trace) < least_squares
    assert 0.5 * posterior < van_trees_floor(trace, variance) < posterior
    # Both are reached where all directions tell alike.
    assert cramer_rao_floor(4.0) == 0.25
    assert van_trees_floor(4.0, 0.25) == 0.125
    assert van_trees_floor(0.0, 0.25) == 0.25
    assert cramer_rao_floor(0.0) == math.inf


def test_psnr_of_floors() -> None:
    assert psnr_ceiling(0.01) == pytest.approx(20.0)
    assert psnr_ceiling(0.0) is psnr_ceiling(math.inf) is None


@pytest.mark.parametrize("clip_norm", [0.05, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_energy_is_that_of_the_jacobian_by_differences(clip_norm: float) -> None:
    model, (clips, labels) = build(lambda: Residual()).eval(), batch(1)
    small = clips[:, :, :2, :4, :4].contiguous()
    channel = Channel(clip_norm=clip_norm)

    def sent(x: torch.Tensor) -> torch.Tensor:
        gradient = mean_gradient(model.double(), F.cross_entropy, x, labels)
        flat = torch.cat([tensor.flatten() for tensor in gradient.values()])
        return flat * min(1.0, clip_norm / float(flat.norm()))

    x, step, energy = small.double(), 1e-5, 0.0
    for index in range(x.numel()):
        shift = torch.zeros_like(x).flatten()
        shift[index] = step
        moved = sent(x + shift.view_as(x)) - sent(x - shift.view_as(x))
        energy += float((moved / (2 * step)).square().sum())
    model.float()
    found = jacobian_energy(model, "cross_entropy", small, labels, channel, generator("probes"), probes=400)
    assert energy < found < 1.5 * energy  # with its three standard errors
    few = jacobian_energy(model, "cross_entropy", small, labels, channel, generator("few"))
    assert 0.5 * energy < few < 6 * energy


def test_a_model_without_second_derivative_is_refused() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return self.head(F.hardsigmoid(clips.mean((2, 3, 4)) * self.head.weight.sum()))

    clips, _ = batch(1)
    with pytest.raises(CapabilityError, match="second derivative"):
        jacobian_energy(
            Model(), "cross_entropy", clips, torch.tensor([0]), Channel(clip_norm=1.0), generator(0)
        )


def test_rows_have_the_means_of_their_cells() -> None:
    records = [
        CeilingRecord(bits=10.0, fano=1.0, no_prior_psnr_db=20.0 + n, information=float(1 + n),
                      unbiased_psnr_db=3.0, prior_variance=0.5)
        for n in range(2)
    ]  # fmt: skip
    cells = [make_cell(n).model_copy(update={"ceilings": record}) for n, record in enumerate(records)]
    (row,) = summarise(cells)
    assert row.ceilings is not None
    assert (row.ceilings.bits, row.ceilings.fano, row.ceilings.no_prior_psnr_db) == (10.0, 1.0, 20.5)
    assert row.ceilings.van_trees_psnr_db == pytest.approx(-10 * math.log10(1 / (1.5 + 2.0)))
    assert summarise([make_cell(0)])[0].ceilings is None
    # Bits below those of the candidates are a ceiling like a certificate.
    told = CeilingRecord(bits=1.0, fano=fano_bound(12, 1.0))
    few = [make_cell(n, 0.0, True).model_copy(update={"ceilings": told}) for n in range(12)]
    (figure,) = summarise(few)[0].figures
    assert figure.ceiling == pytest.approx(2 / np.log2(12))
    assert figure.broken == (figure.tail < 5e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fano_bound(0, 1.0), "candidates is 0"),
        (lambda: fano_bound(4, -1.0), "bits is -1"),
        (lambda: fano_bound(4, math.nan), "bits is nan"),
        (lambda: gaussian_bits(-1.0, 4), "noise_multiplier is -1"),
        (lambda: gaussian_bits(1.0, 0), "entries is 0"),
        (lambda: gaussian_bits(1.0, 4, releases=0), "releases is 0"),
        (lambda: no_prior_floor(1.0, 0.0), "norm is 0"),
        (lambda: no_prior_floor(math.inf, 1.0), "noise_multiplier is inf"),
        (lambda: cramer_rao_floor(-1.0), "information is -1"),
        (lambda: van_trees_floor(math.nan, 1.0), "information is nan"),
        (lambda: van_trees_floor(1.0, 0.0), "variance is 0"),
    ],
)
def test_refusals(call: Callable[[], float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
