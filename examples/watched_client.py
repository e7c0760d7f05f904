"""A client's own training loop, watched: what its step would send, and an audit of it."""

from __future__ import annotations

import torch
from torch import nn

import vleak

data = vleak.load_clips("synthetic", clips=8, frames=4, size=16)
model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=len(data.classes), seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

# --8<-- [start:watch]
with vleak.watch(model, optimizer) as watched:
    # the loop as it is
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data.clips[:1]), data.labels[:1]).backward()
    optimizer.step()
update = watched.update(batch_size=1)
# --8<-- [end:watch]

# --8<-- [start:audit]
audit = watched.audit(
    input_shape=(3, 4, 16, 16), public=data.public_clips, attacks=["matching"], defenses=[], iterations=40
)
print("risk:", audit.risk)
print("\n".join(audit.record.risk.reasons))
# --8<-- [end:audit]

print("checks:", *sorted({check.outcome for check in audit.record.consistency}), "facts:", update.facts.kind)
