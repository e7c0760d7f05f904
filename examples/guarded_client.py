"""A client that looks at its update, and at the server's model, before anything leaves."""

# --8<-- [start:guard]
from __future__ import annotations

import torch

import vleak
from vleak.seeds import generator

data = vleak.load_clips("synthetic", clips=4, frames=4, size=16)
model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=len(data.classes), seed=0)  # the server's
clips, labels = data.clips[:1], data.labels[:1]  # private
public = data.public_clips  # of the same kind of scene, which anybody may have
noise = generator(0, "example")  # of a real client torch.Generator() with a seed that nobody can guess

for defense in ("none", "dp:noise_multiplier=1"):
    client = vleak.Client(model, defense=vleak.DEFENSES.build(defense))
    decision = vleak.guard(client, clips, labels, generator=noise, public_clips=public)
    print(f"{defense}: {decision}")
    if decision.action == "send":
        print(f"{decision.update.wire_bytes} bytes leave")  # decision.update is the one that was judged

head = model.get_parameter("head.weight")
with torch.no_grad():
    head[1:] = 0  # a server that fishes for one class
print(vleak.guard(vleak.Client(model), clips, labels, generator=noise, public_clips=public))
# --8<-- [end:guard]
