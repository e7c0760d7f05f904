"""From a private clip to an update, and from the update back, by hand."""

from __future__ import annotations

import torch

import vleak
from vleak.attacks import Matching
from vleak.defenses import DpSgd, NoDefense
from vleak.metrics import score_clip
from vleak.seeds import generator

data = vleak.load_clips("synthetic", clips=8, frames=4, size=16)
model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=len(data.classes), seed=0)
clip, label = data.clips[:1], data.labels[:1]
baselines = {"public_mean": data.public_clips.mean(0)}

for defense in (NoDefense(), DpSgd(noise_multiplier=1.0)):
    # The client's side: what leaves the machine.
    update = vleak.Client(model, defense=defense).update(clip, label, generator(0, "client"))

    # The server's side: the update, the model that it sent out, and what it knows. The clip is not in it.
    knowledge = vleak.Knowledge(
        clip_shape=(3, 4, 16, 16),
        batch_size=1,
        classes=len(data.classes),
        public_clips=data.public_clips,
    )
    observation = vleak.Observation(model, update, knowledge, channel=defense.channel(update))
    answer = Matching(iterations=100).reconstruct(observation, generator(0, "attack"))

    # Only the judge sees both.
    scores = score_clip(answer.clips[0], clip[0], 0, data.clips, baselines, baselines["public_mean"])
    right = bool(torch.equal(answer.labels, label))
    gain = f"{scores['psnr_gain_db']:+.1f} dB"
    print(f"{defense.label}: {gain} over the baseline, rank {scores['rank']} of 8, label right: {right}")
