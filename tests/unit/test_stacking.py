"""Stacking: weights that are known beforehand, that stay allowed, and that depend on no order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from attacking import observe_clip, scene
from torch import Tensor

from vleak.attacks.stacking import Stack, best_weights, stacked
from vleak.attacks.trials import Evidence, Trial
from vleak.seeds import generator


def noisy(trial: Trial, deviation: float, seed: int) -> Tensor:
    noise = torch.randn(trial.clips.shape, generator=generator("noisy", seed))
    return trial.clips + deviation * noise


def trial() -> Trial:
    return Trial(scene().clips[:1], observe_clip())


def evidence(name: str, answer: Tensor, of: Trial, share: float = 1.0) -> Evidence:
    answers = (answer,)
    found = Evidence(name, (), share, answers)
    return replace(found, gains=(of.gain(found.shared(answer, of.observation.knowledge)),))


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (1.0, 3.0), (0.5, 0.8)])
def test_answers_with_independent_errors_count_by_one_over_their_variance(
    first: float, second: float
) -> None:
    energy = 7.0  # of what is wanted; an answer is that plus an error of its own
    gram = energy + torch.diag(torch.tensor([first, second], dtype=torch.float64))
    weights = best_weights(gram, torch.full((2,), energy, dtype=torch.float64))
    precisions = torch.tensor([1 / first, 1 / second], dtype=torch.float64)
    torch.testing.assert_close(weights, precisions / (1 / energy + precisions.sum()))


def test_weights_never_leave_the_simplex() -> None:
    source = generator("simplex")
    for _ in range(200):
        steps = torch.randn(6, 8, generator=source, dtype=torch.float64)
        steps[1] = steps[0]  # two attacks that answer alike
        weights = best_weights(steps @ steps.T, steps @ torch.randn(8, generator=source).double() * 3)
        assert float(weights.min()) >= 0
        assert float(weights.sum()) <= 1 + 1e-9
        assert int((weights > 0).sum()) <= 3


def test_weights_are_as_good_as_any_others_that_are_allowed() -> None:
    source = generator("simplex", 2)
    steps = torch.randn(3, 20, generator=source, dtype=torch.float64)
    wanted = steps.T @ torch.tensor([0.6, 0.3, 0.3], dtype=torch.float64)
    gram, along = steps @ steps.T, steps @ wanted

    def value(weights: Tensor) -> float:
        return float(weights @ gram @ weights / 2 - along @ weights)

    best = best_weights(gram, along)
    assert best.sum() == pytest.approx(1.0)
    others = torch.distributions.Dirichlet(torch.ones(4, dtype=torch.float64)).sample((3000,))[:, :3]
    assert all(value(best) <= value(other) + 1e-9 for other in others)


def test_an_answer_that_saves_less_than_its_toll_is_left_out() -> None:
    gram = torch.tensor([[1.1, 1.0], [1.0, 1.3]], dtype=torch.float64)
    along = torch.ones(2, dtype=torch.float64)
    both, one = best_weights(gram, along), best_weights(gram, along, 0.1)
    assert (both > 0).tolist() == [True, True]
    torch.testing.assert_close(one, torch.tensor([1 / 1.1, 0.0], dtype=torch.float64))
    saved = float((along @ both - along @ one) / 2)  # the least value is minus half of this product
    torch.testing.assert_close(best_weights(gram, along, 0.9 * saved), both)
    torch.testing.assert_close(best_weights(gram, along, 1.1 * saved), one)


def test_two_answers_with_errors_of_their_own_are_averaged() -> None:
    tried = trial()
    answers = [noisy(tried, 0.05, seed) for seed in range(2)]
    both = [evidence(str(seed), answer, tried) for seed, answer in enumerate(answers)]
    stack = stacked(both, [tried])
    assert stack is not None
    assert {name for name, _ in stack.weights} == {"0", "1"}
    assert all(0.35 < weight < 0.65 for _, weight in stack.weights)  # the better one is favoured a little
    assert stack.gain == pytest.approx(max(each.gain for each in both) + 10 * math.log10(2), abs=0.4)
    ordered = [answers[int(name)] for name, _ in stack.weights]
    assert tried.gain(stack.answer(ordered, tried.observation.knowledge)) == pytest.approx(stack.gain)


def test_what_only_adds_noise_is_left_out_and_no_order_matters() -> None:
    tried = trial()
    good, bad = noisy(tried, 0.05, 0), torch.rand(tried.clips.shape, generator=generator("bad"))
    found = [evidence("bad", bad, tried, 0.0), evidence("good", good, tried), Evidence("failed")]
    for order in (found, found[::-1]):
        stack = stacked(order, [tried])
        assert stack is not None
        assert stack.name == "good"
        assert stack.weights[0][1] == pytest.approx(found[1].share, abs=0.05)
    assert stacked(found[:1], [tried]) is None


def test_a_stack_says_who_counts_how_much() -> None:
    assert Stack((("inverter", 0.75), ("matching", 0.2)), 1.0).name == "0.75 inverter + 0.20 matching"
    assert Stack((("inverter", 0.75),), 1.0).name == "inverter"


def test_answers_to_a_batch_are_brought_in_one_order() -> None:
    knowledge, clips = observe_clip().knowledge, scene().clips[:3]
    stack = Stack((("first", 0.5), ("second", 0.5)), 0.0)
    knowledge = replace(knowledge, batch_size=3)
    torch.testing.assert_close(stack.answer([clips, clips.flip(0)], knowledge), clips)
