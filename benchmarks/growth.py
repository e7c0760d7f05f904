"""How the cost of an iteration grows with the frames, the size of the clips, and the local steps.

    python benchmarks/growth.py [--model c3d_tiny] [--frames 8 16 32 64] [--sizes 32 64 112] [--rounds 5]
    python benchmarks/growth.py --steps 1 2 3 5 8 [--rounds 21]

For every number of frames at the first size, and every size at the first number of frames: CPU milliseconds
of an iteration in bare PyTorch and natively, in turn in one process, medians of rounds, one thread. With
--steps: native iterations that unroll so many local steps, in turn, over an iteration on a gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from bare_loop import BareLoop
from cases import SPATIAL, TEMPORAL
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.descent.timing import interleaved, iterations_needed
from vleak.federated import LocalTraining
from vleak.models import build_model
from vleak.seeds import generator
from vleak.switches import math_attention


@dataclass(frozen=True)
class Work:
    """One clip to rebuild.

    Attributes:
        target: the gradient of another clip, in the order of the parameters.
    """

    model: nn.Module
    labels: Tensor
    target: tuple[Tensor, ...]
    start: Tensor

    def descent(self, rounds: int, local: LocalTraining | None = None) -> Descent:
        """Return a native descent, long enough for the rounds."""
        names = (name for name, _ in self.model.named_parameters())
        named = dict(zip(names, self.target, strict=True))
        settings = DescentSettings(
            iterations=iterations_needed(rounds), rule="sign_adam", spatial=SPATIAL, temporal=TEMPORAL
        )
        problem = Problem(self.model, F.cross_entropy, self.labels, named, local=local)
        return Descent(problem, settings, self.start)


def work(name: str, frames: int, size: int) -> Work:
    """Return the work on a model."""
    model = build_model(name, frames=frames, size=size, classes=10, seed=0)
    draws = generator("growth", frames, size)
    private, start = (torch.rand(1, 3, frames, size, size, generator=draws) for _ in range(2))
    labels = torch.randint(10, (1,), generator=draws)
    target = torch.autograd.grad(F.cross_entropy(model(private), labels), list(model.parameters()))
    return Work(model, labels, target, start)


def measure(name: str, frames: int, size: int, rounds: int) -> tuple[float, float]:
    """Return the CPU seconds of an iteration, bare and native."""
    clip = work(name, frames, size)
    bare = BareLoop(clip.model, clip.labels, clip.target, clip.start, SPATIAL, TEMPORAL)
    with math_attention():
        measured = interleaved({"bare": bare.run, "native": clip.descent(rounds).run}, rounds=rounds)
    return measured["bare"].median, measured["native"].median


def print_steps(clip: Work, steps: Sequence[int], rounds: int) -> None:
    """Print what iterations over local steps cost, in turn."""
    runs = {"gradient": clip.descent(rounds).run}
    for count in steps:
        runs[str(count)] = clip.descent(rounds, LocalTraining(steps=count, learning_rate=0.01)).run
    measured = interleaved(runs, rounds=rounds)
    print("| steps | native | over a gradient | 10 to 90 % of rounds |")
    print("|---|---|---|---|")
    for name, seconds in measured.items():
        ratio = seconds.divided_by(measured["gradient"])
        spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
        print(f"| {name} | {1e3 * seconds.median:.1f} ms | {ratio.median:.2f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="c3d_tiny", help="name of a built-in model")
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 112])
    parser.add_argument("--steps", nargs="+", type=int, default=[], help="local steps to unroll instead")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.steps:
        return print_steps(work(given.model, given.frames[0], given.sizes[0]), given.steps, given.rounds)
    shapes = [(frames, given.sizes[0]) for frames in given.frames]
    shapes += [(given.frames[0], size) for size in given.sizes[1:]]
    first = None
    print("| frames | size | bare | native | bare / native | native / first | voxels / first |")
    print("|---|---|---|---|---|---|---|")
    for frames, size in shapes:
        bare, native = measure(given.model, frames, size, given.rounds)
        voxels = frames * size * size
        first = first or (native, voxels)
        ratios = f"{bare / native:.1f} | {native / first[0]:.1f} | {voxels / first[1]:.1f}"
        print(f"| {frames} | {size} | {1e3 * bare:.1f} ms | {1e3 * native:.1f} ms | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
