"""Matching of a batch's answers to its truths."""

from __future__ import annotations

import pytest
import torch

from vleak.attacks import Reconstruction
from vleak.errors import InputError
from vleak.metrics import assign
from vleak.seeds import generator


def test_answers_are_matched_one_to_one_with_the_largest_sum() -> None:
    truths = torch.rand(5, 12, generator=generator("truths"))
    order = [3, 0, 4, 1, 2]
    answers = truths[order] + 0.01 * torch.rand(5, 12, generator=generator("noise"))
    similarity = -torch.cdist(truths, answers)
    assert [order[answer] for answer in assign(similarity)] == list(range(5))
    # The best pair of all may have to be given up for the best sum.
    assert assign(torch.tensor([[1.0, 0.9], [0.95, 0.0]])) == [1, 0]


@pytest.mark.parametrize(
    ("similarity", "words"),
    [(torch.zeros(2, 3), "expected a square matrix"), (torch.tensor([[float("nan")]]), "NaN or infinity")],
)
def test_what_cannot_be_matched_is_refused(similarity: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        assign(similarity)


def test_a_part_of_an_answer_is_that_of_one_clip() -> None:
    answer = Reconstruction(clips=torch.rand(3, 2, 4), labels=torch.tensor([0, 1, 2]),
                            recovered=torch.tensor([[True, False]] * 3), seconds=6.0)  # fmt: skip
    part = answer.part(1)
    assert torch.equal(part.clips, answer.clips[1:2])
    assert (part.labels.tolist(), part.seconds) == ([1], 2.0)
    assert part.recovered is not None
    assert tuple(part.recovered.shape) == (1, 2)
