"""One round of a real Flower simulation with two clients, run as a program: FOLDER STEPS [LEVEL].

The mod records what the clients send in FOLDER/updates, and refuses from LEVEL on. What the server got is
written into FOLDER/seen.json, an entry a client.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from audits import SHAPE, clips, model
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from torch import nn

from vleak.federated import LocalTraining
from vleak.frameworks import FlowerMod, Gate

RATE = 0.05


def client_app(folder: Path, steps: int, level: str | None) -> ClientApp:
    gate = Gate(
        model=model(), local=LocalTraining(steps=steps, learning_rate=RATE), mode="eval", folder=folder,
        input_shape=None if level is None else SHAPE, refuse_from=level, settings={"iterations": 25},
    )  # fmt: skip
    client = ClientApp(mods=[FlowerMod(gate)])

    @client.train()
    def train(message: Message, context: Any) -> Message:
        net, row = model(), int(context.node_config["partition-id"])
        clip, label = clips().clips[row : row + 1], clips().labels[row : row + 1]
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(clip), label).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
        return Message(content=RecordDict(content), reply_to=message)

    return client


def server_app(seen: Path) -> ServerApp:
    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        while len(nodes := list(grid.get_node_ids())) < 2:
            time.sleep(0.2)
        content = RecordDict({"arrays": ArrayRecord(model().state_dict())})
        messages = [Message(content=content, message_type="train", dst_node_id=node) for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=400))
        seen.write_text(json.dumps(["error" if reply.has_error() else "weights" for reply in replies]))

    return server


if __name__ == "__main__":
    root = Path(sys.argv[1])
    (root / "updates").mkdir()
    run_simulation(
        server_app=server_app(root / "seen.json"),
        client_app=client_app(root / "updates", int(sys.argv[2]), (*sys.argv[3:], None)[0]),
        num_supernodes=2,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}},
    )
