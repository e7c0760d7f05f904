"""Gates before the wire for Flower, NVFlare and Opacus; none of Flower and NVFlare is needed to make them."""

from __future__ import annotations

import warnings

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vleak

model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=0)

# --8<-- [start:gate]
from vleak.frameworks import FlowerMod, Gate, NvflareFilter  # noqa: E402

local = vleak.LocalTraining(steps=5, learning_rate=0.05)
gate = Gate(model=model, local=local, input_shape=(3, 4, 16, 16), refuse_from="high")
# --8<-- [end:gate]

# --8<-- [start:flower]
mod = FlowerMod(gate)  # ClientApp(mods=[mod]), the first in the list
# --8<-- [end:flower]

# --8<-- [start:nvflare]
leak_filter = NvflareFilter(gate)  # the last of the task-result filters
# --8<-- [end:nvflare]

warnings.simplefilter("ignore")  # Opacus warns of its generator
data = TensorDataset(torch.randn(155, 8), torch.arange(155) % 3)
net = nn.Linear(8, 3)
engine = PrivacyEngine()
net, optimizer, loader = engine.make_private(
    module=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), noise_multiplier=1.0,
    data_loader=DataLoader(data, batch_size=16, shuffle=True), max_grad_norm=1.0, poisson_sampling=False,
)  # fmt: skip

# --8<-- [start:opacus]
from vleak.frameworks import OpacusCheck  # noqa: E402

check = OpacusCheck(engine, optimizer, loader)  # after make_private; then train
print(*check.findings(), sep="\n")
# --8<-- [end:opacus]
print("gates:", type(mod).__name__, type(leak_filter).__name__)
