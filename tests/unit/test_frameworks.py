"""Gates of frameworks by their interfaces: nothing is lost, what leaks is held back, and no file is half."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from audits import SHAPE, clips, model
from torch import nn

from vleak.errors import InputError
from vleak.federated import LocalTraining, Update
from vleak.frameworks import FlowerMod, Gate, NvflareFilter, RefusedError
from vleak.update_audit import AuditRecord

RATE = 0.05
QUICK: dict[str, Any] = {"iterations": 25, "starts": 2, "public": "synthetic"}


def gate(**changes: Any) -> Gate:
    given = {"model": model(), "local": LocalTraining(learning_rate=RATE), "mode": "eval", **changes}
    return Gate(**given)


def trained() -> dict[str, np.ndarray]:
    """Weights of the model after one step on one clip."""
    net = copy.deepcopy(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    nn.functional.cross_entropy(net(clips().clips[:1]), clips().labels[:1]).backward()
    optimizer.step()
    return arrays(net)


def arrays(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in net.state_dict().items()}


@dataclass
class Message:
    """A message as far as a mod of Flower touches it."""

    weights: dict[str, np.ndarray]
    message_type: str = "train"
    error: bool = False
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> SimpleNamespace:
        return SimpleNamespace(message_type=self.message_type)

    @property
    def content(self) -> SimpleNamespace:
        record = {name: SimpleNamespace(numpy=lambda a=array: a) for name, array in self.weights.items()}
        return SimpleNamespace(array_records={"arrays": record, **self.others})

    def has_error(self) -> bool:
        return self.error


CONTEXT = SimpleNamespace(node_id=17)


@pytest.mark.parametrize("numbered", [False, True])
def test_the_mod_records_and_returns_the_reply(tmp_path: Path, numbered: bool) -> None:
    def as_sent(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {str(i): a for i, a in enumerate(weights.values())} if numbered else weights

    reply = Message(as_sent(trained()))
    kept = copy.deepcopy(reply.weights)
    mod = FlowerMod(gate(folder=tmp_path))
    assert mod(Message(as_sent(arrays(model()))), CONTEXT, lambda message, context: reply) is reply
    assert all(np.array_equal(reply.weights[name], kept[name]) for name in kept)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("client-17-")
    update = Update.load(file)
    update.check(model())
    assert update.facts.local == LocalTraining(learning_rate=RATE)


def test_other_messages_pass(tmp_path: Path) -> None:
    mod = FlowerMod(gate(folder=tmp_path))
    for message, reply in [
        (Message({}, message_type="evaluate"), Message({})),
        (Message(arrays(model())), Message({}, error=True)),
    ]:
        assert mod(message, CONTEXT, lambda m, c, reply=reply: reply) is reply
    assert list(tmp_path.iterdir()) == []


def test_the_mod_holds_back_what_leaks(tmp_path: Path) -> None:
    mod = FlowerMod(gate(folder=tmp_path, input_shape=SHAPE, refuse_from="high", settings=QUICK))
    with pytest.raises(RefusedError, match="not sent: its audit says high"):
        mod(Message(arrays(model())), CONTEXT, lambda m, c: Message(trained()))
    record = AuditRecord.model_validate(json.loads(next(tmp_path.glob("*.json")).read_text()))
    assert record.risk.level == "high"


def test_an_undetermined_risk_is_held_back() -> None:
    mod = FlowerMod(gate(input_shape=SHAPE, refuse_from="high", settings={**QUICK, "attacks": ()}))
    with pytest.raises(RefusedError, match="undetermined"):
        mod(Message(arrays(model())), CONTEXT, lambda m, c: Message(trained()))


def test_the_mod_refuses_what_it_cannot_read() -> None:
    mod = FlowerMod(gate())
    two = Message(trained(), others={"more": {}})
    with pytest.raises(InputError, match="one ArrayRecord"):
        mod(Message(arrays(model())), CONTEXT, lambda m, c: two)
    with pytest.raises(InputError, match="which the model has not"):
        mod(Message(arrays(model())), CONTEXT, lambda m, c: Message({"other": np.zeros(3)}))


class Kind(str):
    """A kind as NVFlare's enumeration is one: a text with a value."""

    value = "WEIGHT_DIFF"


@pytest.mark.parametrize("kind", ["WEIGHT_DIFF", Kind("WEIGHT_DIFF"), "WEIGHTS"])
def test_the_filter_records_and_returns_the_result(tmp_path: Path, kind: str) -> None:
    before, after = arrays(model()), trained()
    data = after if kind == "WEIGHTS" else {name: after[name] - before[name] for name in after}
    result = {"DXO": {"kind": kind, "data": data, "meta": {"NUM_STEPS_CURRENT_ROUND": 1}}}
    task = {"DXO": {"kind": "WEIGHTS", "data": before, "meta": {}}}
    context = SimpleNamespace(get_identity_name=lambda: "site-1")
    held = NvflareFilter(gate(folder=tmp_path, model=model(3)))  # the task's weights count
    assert held.remember(task, context) is task
    assert held.process(result, context) is result
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("site-1-")
    delta = Update.load(file)
    for name, tensor in delta.tensors.items():
        assert np.allclose(tensor.numpy(), after[name] - before[name], atol=1e-6)


def test_the_filter_passes_metrics_and_names_no_file_by_a_path(tmp_path: Path) -> None:
    held = NvflareFilter(gate(folder=tmp_path))
    metrics = {"DXO": {"kind": "METRICS", "data": {"loss": 1.0}, "meta": {}}}
    assert held.process(metrics, None) is metrics
    assert held.process({}, None) == {}
    result = {"DXO": {"kind": "WEIGHTS", "data": trained(), "meta": {}}}
    with pytest.raises(InputError, match="cannot name a file"):
        held.process(result, SimpleNamespace(get_identity_name=lambda: "../up"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refuse_from": "hihg"}, "did you mean high"),
        ({"refuse_from": "high"}, "needs `input_shape`"),
        ({"folder": "no/such/folder"}, "there is no such folder"),
        ({"mode": "trian"}, "did you mean train"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        gate(**changes)
