"""DP-SGD by Opacus as it is deployed: what is right is found right, and every planted fault is named."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from vleak.errors import InputError
from vleak.frameworks import OpacusCheck


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # Opacus warns of its own generator
        torch.default_generator.manual_seed(0)
        yield


class Folded(nn.Module):
    """Folds two frames of a clip into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(clips.reshape(-1, 4)).reshape(len(clips), 2, 3).mean(1)


class Setup:
    """One private training, as a user sets it up."""

    def __init__(
        self,
        samples: int = 160,
        *,
        net: nn.Module | None = None,
        sampler: Any = None,
        poisson: bool = True,
        shuffle: bool = True,
        adjacency: Any = "add or remove",
    ) -> None:
        data = TensorDataset(torch.randn(samples, 8), torch.arange(samples) % 3)
        order = {"sampler": sampler} if sampler is not None else {"shuffle": shuffle}
        net = net or nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.engine, given = PrivacyEngine(), DataLoader(data, batch_size=16, **order)
        self.net, self.optimizer, self.loader = self.engine.make_private(
            module=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), data_loader=given,
            noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=poisson,
        )  # fmt: skip
        self.check = OpacusCheck(self.engine, self.optimizer, self.loader, adjacency=adjacency, given=given)

    def train(self) -> dict[str, str]:
        """Train a pass; by part the outcome."""
        for clips, labels in self.loader:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(clips), labels).backward()
            self.optimizer.step()
        return {finding.part: finding.outcome for finding in self.check.findings()}


PARTS = ("normaliser", "sampling", "adjacency", "rows", "clipping", "noise", "accounting")


def test_a_sound_training_is_found_sound() -> None:
    setup = Setup(adjacency="zero out")
    assert setup.train() == dict.fromkeys(PARTS, "fits")
    assert setup.check.steps == 10
    assert all("\n" not in str(finding) for finding in setup.check.findings())


@pytest.mark.parametrize(
    ("how", "part", "outcome", "words"),
    [
        # Issue 819: the floor of the expected batch size is another with one sample more or less.
        ({"samples": 160}, "normaliser", "wrong", "tells neighbours apart"),
        # Issue 571: at two or three samples the normaliser tells how many there are.
        ({"samples": 3}, "normaliser", "wrong", "another of [2, 3, 4], which tells neighbours apart"),
        ({"samples": 155}, "normaliser", "doubt", "depends on the number of samples"),
        ({"samples": 155, "adjacency": "zero out"}, "normaliser", "fits", "as many samples"),
        ({"poisson": False}, "sampling", "wrong", "shuffled and accounted as Poisson"),
        ({"poisson": False, "shuffle": False}, "sampling", "wrong", "in a fixed order"),
        (
            {"poisson": False, "sampler": WeightedRandomSampler(torch.ones(160), 160)},
            "sampling", "wrong", "drawn with weights",
        ),
        # Issue 813: what a weighted sampler draws in a pass is taken for the number of samples.
        (
            {"samples": 1000, "sampler": WeightedRandomSampler(torch.ones(1000), 128)},
            "sampling", "wrong", "batches of 16 were asked for, and a step has 125 samples on average",
        ),
        (
            {"sampler": WeightedRandomSampler(torch.ones(160), 160)},
            "sampling", "doubt", "the weights that were asked for are dropped",
        ),
        ({"adjacency": "replace"}, "adjacency", "wrong", "twice the clipping norm"),
    ],
)  # fmt: skip
def test_a_set_up_that_breaks_the_claim_is_named(
    how: dict[str, Any], part: str, outcome: str, words: str
) -> None:
    found = next(each for each in Setup(**how).check.findings() if each.part == part)
    assert found.outcome == outcome
    assert words in found.text


def test_batches_of_one_size_are_no_poisson_sampling() -> None:
    assert Setup(poisson=False).train()["rows"] == "wrong"


def test_frames_folded_into_the_batch_are_seen() -> None:
    assert Setup(net=Folded()).train()["rows"] == "wrong"


def test_a_step_without_clipping_is_seen() -> None:
    setup = Setup()
    setup.optimizer.max_grad_norm = 1e6
    setup.check.optimizer = setup.optimizer
    original = setup.optimizer.clip_and_accumulate

    def unclipped() -> None:
        original()
        setup.optimizer.max_grad_norm = 1e-3

    setup.optimizer.clip_and_accumulate = unclipped
    assert setup.train()["clipping"] == "wrong"


@pytest.mark.parametrize("factor", [0.9, 0.0])
def test_less_noise_than_stated_is_seen(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.optimizers import optimizer as of_opacus

    true = of_opacus._generate_noise

    def less(std: float, reference: Tensor, **more: Any) -> Tensor:
        return factor * true(std, reference, **more)

    monkeypatch.setattr(of_opacus, "_generate_noise", less)
    wide = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 3))
    assert Setup(net=wide).train()["noise"] == "wrong"


def test_a_step_that_is_not_counted_is_seen() -> None:
    setup = Setup()
    setup.check._own = None  # as where somebody replaced the accountant's hook before
    assert setup.train()["accounting"] == "wrong"


def test_what_is_not_of_opacus_is_refused() -> None:
    setup = Setup()
    plain = torch.optim.SGD(setup.net.parameters(), lr=0.1)
    with pytest.raises(InputError, match="expected the engine and the optimizer"):
        OpacusCheck(setup.engine, plain, setup.loader)
    with pytest.raises(InputError, match="it has no length"):
        OpacusCheck(setup.engine, setup.optimizer, iter([]))
    with pytest.raises(InputError, match="did you mean replace"):
        OpacusCheck(setup.engine, setup.optimizer, setup.loader, adjacency="replaced")
