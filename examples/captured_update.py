"""An update that another framework's server captured, as files, and the attack on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import vleak
from vleak.attacks import Matching, update_sign
from vleak.seeds import generator

data = vleak.load_clips("synthetic", clips=8, frames=4, size=16)
model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=len(data.classes), seed=0)
clip, label = data.clips[:1], data.labels[:1]
RATE = 0.125


def train_elsewhere(folder: Path) -> None:
    """Write what the client sends: the gradient by name, and as a list the weights after a step of SGD."""
    loss = nn.functional.cross_entropy(model(clip), label)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    torch.save({"gradients": dict(zip(names, gradient, strict=True))}, folder / "gradient.pt")
    after = [p.detach().double() - RATE * g for p, g in zip(model.parameters(), gradient, strict=True)]
    np.savez(folder / "after.npz", *[weights.numpy() for weights in after])


def attack(update: vleak.Update) -> Tensor:
    """Return the clips that are rebuilt from an update."""
    # --8<-- [start:attack]
    knowledge = vleak.Knowledge(
        clip_shape=(3, 4, 16, 16), batch_size=1, classes=6, public_clips=data.public_clips
    )
    observation = vleak.Observation(model, update, knowledge)
    print("by its last layer:", update_sign(observation))
    answer = Matching(iterations=100).reconstruct(observation, generator(0, "attack"))
    print("labels:", answer.labels.tolist(), "flags:", list(answer.flags))
    # --8<-- [end:attack]
    return answer.clips


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    train_elsewhere(folder)
    # --8<-- [start:gradient]
    facts = vleak.PublicFacts(kind="fedsgd", batch_size=1, mode="eval")
    update, notes = vleak.load_update(folder / "gradient.pt", model, facts=facts)
    print("\n".join(notes))
    # --8<-- [end:gradient]
    first = attack(update)
    # --8<-- [start:delta]
    delta = vleak.Update.from_state_dicts(model, folder / "after.npz", learning_rate=RATE)
    print("\n".join(delta.notes))
    update = delta.as_gradient()
    # --8<-- [end:delta]
    second = attack(update)

public_mean = data.public_clips.mean(0, keepdim=True)


def psnr(clips: Tensor) -> float:
    """Return the peak signal-to-noise ratio against the private clip, which only the judge has."""
    return -10 * float((clips - clip).square().mean().log10())


print(f"gain: {psnr(first) - psnr(public_mean):+.1f} dB, same from the delta: {torch.equal(first, second)}")
