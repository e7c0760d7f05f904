"""An attack of your own: gradient matching by cosine, for an attacker who does not know the defense."""

# --8<-- [start:attack]
from __future__ import annotations

import torch

import vleak
from vleak.attacks import Hooks, Work
from vleak.descent import Descent, DescentSettings, Problem
from vleak.federated import LOSSES


class CosineMatching(vleak.Attack):
    """Gradient matching from random clips: cosine distance, Adam, a little smoothness."""

    name = "cosine_matching"
    adaptive = False  # gets neither the channel of the defense nor its code

    def __init__(self, *, iterations: int = 100, restarts: int = 2, smoothness: float = 0.03) -> None:
        self.iterations, self.restarts, self.smoothness = iterations, restarts, smoothness

    def prepare(self, observation: vleak.Observation, generator: torch.Generator, hooks: Hooks) -> Work:
        update, shape = observation.update, observation.knowledge.batch_shape
        problem = Problem(observation.model, LOSSES[update.facts.loss], observation.labels, update.tensors)
        settings = DescentSettings(iterations=self.iterations, spatial=self.smoothness)
        starts = [torch.rand(shape, generator=generator) for _ in range(self.restarts)]
        descents = [Descent(problem, settings, start) for start in starts]
        return Work(descents=descents, iterations=self.iterations, labels=observation.labels)


# --8<-- [end:attack]

if __name__ == "__main__":
    # --8<-- [start:run]
    run = vleak.evaluate(
        attacks=[CosineMatching(iterations=60), "matching"],
        defenses=["dp:noise_multiplier=0.1"],
        clips=3,
        frames=4,
        size=16,
        iterations=60,
    )
    for row in run.rows:
        known = "baseline" if row.baseline else "adaptive" if row.adaptive else "non-adaptive"
        print(f"{row.defense}, {row.attack} ({known}): {row.psnr_gain_db.mean:+.1f} dB")
    # --8<-- [end:run]
