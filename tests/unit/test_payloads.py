"""Payloads of Flower and NVFlare as objects, by their interfaces alone: what an audit reads of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
from audits import LOCAL, model, quick, sent
from torch import Tensor, allclose, equal

import vleak
from vleak.errors import InputError
from vleak.update_audit import read_given


def npy(array: object) -> bytes:
    """An array as Flower packs it."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def of_flower(tensors: Iterable[Tensor]) -> SimpleNamespace:
    """`Parameters` of Flower, by their interface."""
    return SimpleNamespace(tensor_type="numpy.ndarray", tensors=[npy(each.numpy()) for each in tensors])


def test_objects_of_frameworks_are_read() -> None:
    net = model()
    update = sent(net, local=LOCAL)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = {name: tensor + update.tensors[name] for name, tensor in before.items()}
    record = {
        name: SimpleNamespace(stype="numpy.ndarray", numpy=tensor.numpy) for name, tensor in after.items()
    }
    numbered = {str(index): array for index, array in enumerate(record.values())}
    fit = SimpleNamespace(parameters=of_flower(after.values()), num_examples=1)
    dxo = SimpleNamespace(data_kind="WEIGHT_DIFF", data=update.tensors, meta={"NUM_STEPS_CURRENT_ROUND": 5})
    facts = vleak.PublicFacts("fedavg", local=LOCAL)
    for source in (record, numbered, fit.parameters, fit):
        for start in (before, of_flower(before.values())):
            given = read_given(source, net, facts, before=start)
            for name, tensor in update.tensors.items():
                assert allclose(given.update.tensors[name], tensor, atol=1e-6), (source, name)
    for source in (dxo, {"DXO": dxo}):
        assert equal(read_given(source, net, facts).update.tensors["head.bias"], update.tensors["head.bias"])
    with pytest.raises(InputError, match="the payload says WEIGHT_DIFF, expected the weights before"):
        read_given(after, net, facts, before=dxo)


@pytest.mark.parametrize(
    ("packed", "kind", "words"),
    [
        (npy(np.array([{}], dtype=object)), "numpy.ndarray", "pickled, which could run anything"),
        (b"\x93NUMPY", "numpy.ndarray", "tensor number 0 of the payload cannot be read"),
        (b"", "numpy.ndarray", "tensor number 0 of the payload cannot be read"),
        (b"", "torch", "expected 'numpy.ndarray'; unpack them first"),
    ],
    ids=["pickle", "cut", "empty", "another type"],
)
def test_a_payload_that_is_none_is_refused(packed: bytes, kind: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        quick(model(), SimpleNamespace(tensor_type=kind, tensors=[packed]))
