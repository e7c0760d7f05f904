"""How the cost of an iteration grows with the frames and the size of the clips.

    python benchmarks/growth.py [--model c3d_tiny] [--frames 8 16 32 64] [--sizes 32 64 112] [--rounds 5]

For every number of frames at the first size, and every size at the first number of frames: CPU milliseconds
of an iteration in bare PyTorch and natively, in turn in one process, medians of rounds, one thread.
"""

from __future__ import annotations

import argparse

import torch
from bare_loop import BareLoop
from cases import SPATIAL, TEMPORAL
from torch.nn import functional as F

from vleak.descent.loop import Descent, DescentSettings, Problem
from vleak.descent.timing import interleaved, iterations_needed
from vleak.models import build_model
from vleak.seeds import generator
from vleak.switches import math_attention


def measure(name: str, frames: int, size: int, rounds: int) -> tuple[float, float]:
    """Return the CPU seconds of an iteration, bare and native."""
    model = build_model(name, frames=frames, size=size, classes=10, seed=0)
    draws = generator("growth", frames, size)
    private, start = (torch.rand(1, 3, frames, size, size, generator=draws) for _ in range(2))
    labels = torch.randint(10, (1,), generator=draws)
    target = torch.autograd.grad(F.cross_entropy(model(private), labels), list(model.parameters()))
    bare = BareLoop(model, labels, target, start, SPATIAL, TEMPORAL)
    named = dict(zip((name for name, _ in model.named_parameters()), target, strict=True))
    settings = DescentSettings(
        iterations=iterations_needed(rounds), rule="sign_adam", spatial=SPATIAL, temporal=TEMPORAL
    )
    native = Descent(Problem(model, F.cross_entropy, labels, named), settings, start)
    with math_attention():
        measured = interleaved({"bare": bare.run, "native": native.run}, rounds=rounds)
    return measured["bare"].median, measured["native"].median


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="c3d_tiny", help="name of a built-in model")
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 112])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
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
