"""What holds of all operators: opcheck, threads, instruction sets, backends, and direct calls."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from native_cases import PENALTIES, Run, normal, uniform, using, with_gradient
from torch import Tensor
from torch.nn import functional as F

import vleak.native
from vleak.errors import InputError
from vleak.native import (
    conv_input,
    conv_output,
    conv_weight,
    max_pool,
    operators,
    panel_product,
    panels,
    product,
    sparse_conv_input,
    sparse_conv_output,
    sparse_conv_weight,
)

DTYPES = (torch.float32, torch.float64)


def parameters(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    shapes = ((3, 4), (5,))
    gradients = [
        normal(*shape, seed=("g", i), dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)
    ]
    return gradients, [normal(*shape, seed=("t", i), dtype=dtype) for i, shape in enumerate(shapes)]


def pass_samples(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Return arguments of the operators over parameters and pixels."""
    gradients, targets = parameters(dtype)
    x = uniform(2, 3, 3, 4, 5, dtype=dtype)
    zeros = [torch.zeros_like(x) for _ in range(3)]
    numbers = operators.step_settings(step=1, lr=0.1, prior_weight=0.3, spatial=0.1, temporal=0.2)
    row = torch.tensor(numbers, dtype=torch.float64)
    distance, best = uniform(2, dtype=dtype), torch.full((2,), math.inf, dtype=dtype)
    data = normal(*x.shape, dtype=dtype)
    sums = torch.tensor([0.1, 2.0, 3.0], dtype=torch.float64)
    constants = [g.detach() for g in gradients]
    return {
        "gradient_match": (gradients, targets, [], "cosine"),
        "gradient_match masked": (gradients, targets, [t > 0 for t in targets], "l2"),
        "gradient_match_partial": (constants, targets, [], sums, "cosine"),
        "total_variation": (x.clone().requires_grad_(), 1.0, 0.5, False, 0.0),
        "total_variation isotropic": (x.clone().requires_grad_(), 1.0, 0.5, True, 0.1),
        "descend": (x, data, distance, *zeros, best, None, row, False, 0.01, "adam"),
        "descend prior": (x, -x, distance, *zeros, best, x[:1].clone(), row, False, 0.01, "sign_adam"),
    }


def sum_samples(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Return arguments of the layers and products."""
    x, w, dy = (normal(*shape, dtype=dtype) for shape in ((2, 3, 4, 7, 9), (4, 3, 3, 3, 3), (2, 4, 4, 7, 9)))
    ones = [1, 1, 1]
    few, places = F.max_pool3d(dy, 2, return_indices=True)
    rows, m = normal(3, 6, dtype=dtype), normal(6, 40, dtype=dtype)
    numbers = [normal(3, seed=seed, dtype=dtype) for seed in range(4)]
    rows_of_x = [normal(9, seed=seed, dtype=dtype) for seed in range(2)]
    norms = [normal(2 * 3 * 4 * 7, seed=seed, dtype=dtype) for seed in range(2)]
    return {
        "conv_output": ([x, x], [w, w], normal(4, dtype=dtype), ones, ones),
        "conv_input": ([dy, dy], [w, w], list(x.shape), ones, ones),
        "conv_weight": ([x, x], [dy, dy], [3, 3, 3], ones, ones, False, w),
        "sparse_conv_output": ([x, x], [w, w], normal(4, dtype=dtype), places, ones, ones),
        "sparse_conv_input": ([few, few], [w, w], places, list(x.shape), ones, ones),
        "sparse_conv_weight": (x, few, places, [3, 3, 3], ones, ones),
        "max_pool": (x, [2, 2, 2], [2, 1, 2]),
        "batch_statistics": (x, 1e-5),
        "batch_norm": (x, *numbers),
        "batch_norm_backward": (-x, x, *numbers[:3], True),
        "batch_norm_second": (x.cos(), *numbers[:2], -x, x, *numbers[:3], False),
        "layer_norm": (x, *rows_of_x, 1e-5),
        "layer_norm_backward": (-x, x, *norms, rows_of_x[0]),
        "layer_norm_second": (x.cos(), *rows_of_x, -x, x, *norms, rows_of_x[0]),
        "activation_backward": (-x, x, 0),
        "activation_second": (x.cos(), -x, x, 1),
        "softmax_second": (x.cos(), -x, x.softmax(-1)),
        "product": ([rows, rows], [m, m.T.contiguous().T]),
        "panel_product": ([rows, rows], [panels(m), panels(2 * m)], 40, False),
    }


def test_every_operator_has_a_sample() -> None:
    declared = {name.removeprefix("vleak::") for name in torch._C._dispatch_get_all_op_names()}
    assert {name for name in declared if "::" not in name} == {name.split()[0] for name in SAMPLES}


SAMPLES = [*pass_samples(torch.float32), *sum_samples(torch.float32)]


#: What opcheck asks of a declaration without tracing it, which takes most of its time.
UNTRACED = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = (*UNTRACED, "test_aot_dispatch_dynamic")


def check(
    sample: str, native: torch.dtype, plain: torch.dtype, of_reference: tuple[str, ...] = TRACED
) -> None:
    """Check both declarations of an operator, each in one precision: they differ in the kernel only."""
    for namespace, implementation, dtype, asked in (
        ("vleak", "native", native, TRACED),
        ("vleak_reference", "torch", plain, of_reference),
    ):
        with using(implementation):
            operator = getattr(getattr(torch.ops, namespace), sample.split()[0]).default
            sampled = (pass_samples(dtype) | sum_samples(dtype))[sample]
            torch.library.opcheck(operator, sampled, test_utils=asked)


@pytest.mark.parametrize(
    "sample", [pytest.param(name, marks=pytest.mark.slow if " " in name else ()) for name in SAMPLES]
)
def test_opcheck(sample: str) -> None:
    check(sample, torch.float32, torch.float64, UNTRACED)


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck_traces_the_reference_too(sample: str) -> None:
    check(sample, torch.float32, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES)
def test_opcheck_in_the_other_precision(sample: str) -> None:
    check(sample, torch.float64, torch.float32)


# ---------------------------------------------------------------------------------------------------------
# Threads and instruction sets


def all_passes(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return the results of the passes over parameters and pixels, on enough work for several threads."""
    x, gradient = uniform(*shape, dtype=dtype), normal(*shape, dtype=dtype)
    results: list[Tensor] = []
    for penalty in PENALTIES:
        results += with_gradient(lambda x, p=penalty: operators.total_variation(x, **p), x)
        run = Run(x)
        results += [run.step(gradient, x.flatten(1).sum(1), lr=0.1, **penalty), run.x, run.m, run.v]
    distance, residuals = operators.gradient_match([gradient, x], [x, gradient])
    return [*results, distance, *residuals]


def all_sums(dtype: torch.dtype) -> list[Tensor]:
    """Return the results of the convolutions and products, on enough work for several threads."""
    settings: dict[str, Any] = {"stride": (1, 2, 1), "padding": (1, 1, 1)}
    x, w = normal(2, 9, 5, 37, 41, dtype=dtype), normal(25, 9, 3, 3, 3, dtype=dtype)
    y = conv_output([x, x], [w, w], **settings)
    dx = conv_input([y], [w], input_shape=x.shape, **settings)
    dw = conv_weight([x, x], [y, y], kernel=(3, 3, 3), **settings)
    few, places = max_pool(y, kernel=(2, 2, 2), stride=(2, 2, 2))
    rows, m = normal(19, 700, dtype=dtype), normal(700, 1030, dtype=dtype)
    sparse = torch.where(rows > 0, rows, 0)
    return [
        *(y, dx, dw, few, places),
        sparse_conv_output([x, x], [w, w], None, places, **settings),
        sparse_conv_input([few, few], [w, w], places, input_shape=x.shape, **settings),
        sparse_conv_weight(x, few, places, kernel=(3, 3, 3), **settings),
        *(product([rows], [matrix]) for matrix in (m, m.T.contiguous().T)),
        *(panel_product([left], [panels(m)], 1030) for left in (rows, sparse)),
        panel_product([rows], [panels(m.T)], 700, transposed=True),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    results = []
    with using("native"):
        try:
            for number in (1, 2, 5):
                torch.set_num_threads(number)
                results.append([*all_passes((3, 3, 8, 37, 41), dtype), *all_sums(dtype)])
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_the_instruction_set_does_not_change_a_bit(name: str) -> None:
    for dtype in DTYPES:
        with using("baseline"):
            expected = all_passes((2, 3, 4, 19, 23), dtype)
        with using(name):
            results = all_passes((2, 3, 4, 19, 23), dtype)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


# ---------------------------------------------------------------------------------------------------------
# Backends


def test_use_reference_is_of_one_thread_and_nests() -> None:
    seen: list[str] = []
    outside = operators.backend()
    with operators.use_reference():
        with operators.use_reference():
            assert operators.backend() == "torch"
        assert operators.backend() == "torch"
        thread = threading.Thread(target=lambda: seen.append(operators.backend()))
        thread.start()
        thread.join()
    assert seen == [outside]
    assert operators.backend() == outside


def test_backend_of_another_device_is_torch() -> None:
    assert operators.backend("meta") == "torch"


def test_public_names_exist() -> None:
    assert len(set(vleak.native.__all__)) == len(vleak.native.__all__)
    assert all(hasattr(vleak.native, name) for name in vleak.native.__all__)


# ---------------------------------------------------------------------------------------------------------
# Direct calls, which pass the checks of the public functions by

A, B, M = torch.zeros(3), torch.zeros(2, 2), normal(8, 5)
CLIP, SUMS, CUT = torch.zeros(2, 3, 4, 5, 6), torch.zeros(3, dtype=torch.float64), panels(M)
X, W, DY = normal(3, 5, 8, 11), normal(13, 5, 3, 3), normal(3, 13, 8, 11)
ONES, PLACES = [1, 1], torch.zeros(3, 13, 4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gradient_match", ([A, B], [A], [], "cosine")),
        ("total_variation", (A, 1.0, 1.0, False, 0.0)),
        ("descend", (CLIP, A, A, CLIP, CLIP, CLIP, A, None, *pass_samples(torch.float32)["descend"][8:])),
        ("conv_output", ([X], [W[:, :1]], None, ONES, ONES)),
        ("conv_input", ([DY], [W], [3, 5, 9, 11], ONES, ONES)),
        ("conv_weight", ([X], [DY], [3], ONES, ONES)),
        ("conv_weight", ([X], [DY], [3, 3], ONES, ONES, False, W[:1])),
        ("sparse_conv_output", ([X], [W], None, PLACES + 88, ONES, ONES)),
        ("sparse_conv_input", ([DY], [W], PLACES, [3, 5, 9, 11], ONES, ONES)),
        ("sparse_conv_weight", (X, DY, PLACES - 1, [3, 3], ONES, ONES)),
        ("max_pool", (X, [2, 12], ONES)),
        ("batch_statistics", (A, 1e-5)),
        ("batch_norm", (X, M[0], M[0], M[0], A)),
        ("batch_norm_backward", (DY, X, M[0], M[0], M[0], True)),
        ("batch_norm_second", (X, M[0], M[0], X[:1], X, M[0], M[0], M[0], True)),
        ("product", ([M], [M])),
        ("panel_product", ([M], [CUT], 5, False)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_fail_and_do_not_crash(name: str, arguments: tuple[Any, ...]) -> None:
    with using("native"), pytest.raises(RuntimeError, match="vleak"):
        getattr(torch.ops.vleak, name).default(*arguments)


@pytest.mark.parametrize(
    ("stride", "padding"), [([1, 1 << 62], ONES), (ONES, [1 << 62, 1]), (ONES, [1 << 30, 1 << 30])]
)
def test_sizes_out_of_range_fail_and_do_not_crash(stride: list[int], padding: list[int]) -> None:
    with using("native"):
        with pytest.raises(RuntimeError, match=r"vleak.*(out of range|too large)"):
            torch.ops.vleak.conv_output([X], [W], None, stride, padding)
        with pytest.raises(RuntimeError, match=r"vleak.*(out of range|too large)"):
            torch.ops.vleak.conv_input([DY], [W], list(X.shape), stride, padding)


def meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


#: Calls with tensors of several devices, or without any tensor, and what they say.
DIRECT: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "a meta target": ("gradient_match", ([A], [meta(A)], [], "l2"), "targets[0] on cpu like gradients"),
    "a meta gradient": ("gradient_match", ([A, meta(B)], [A, B], [], "l2"), "gradients[1] on cpu"),
    "a meta mask": ("gradient_match", ([A], [A], [meta(A > 0)], "l2"), "masks[0] of shape (3,) on"),
    "meta sums": ("gradient_match_partial", ([A], [A], [], meta(SUMS), "l2"), "on cpu, got (3,) of"),
    "CPU sums": ("gradient_match_partial", ([meta(A)],) * 2 + ([], SUMS, "l2"), "on meta, got (3,)"),
    "no gradient": (
        "gradient_match",
        ([], [], [], "l2"),
        "expected at least one gradient, got an empty list",
    ),
    "a meta weight": ("conv_output", ([X], [meta(W)], None, ONES, ONES), "ws[0] on cpu like xs[0], got"),
    "a meta bias": ("conv_output", ([X], [W], meta(W[:, 0, 0, 0]), ONES, ONES), "expected bias on cpu"),
    "a meta input": ("conv_output", ([meta(X)], [W], None, ONES, ONES), "expected ws[0] on meta"),
    "a second meta input": ("conv_output", ([X, meta(X)], [W, W], None, ONES, ONES), "xs[1] on cpu"),
    "a meta weight backward": ("conv_input", ([DY], [meta(W)], list(X.shape), ONES, ONES), "ws[0] on"),
    "a meta dy": ("conv_weight", ([X], [meta(DY)], [3, 3], ONES, ONES), "expected dys[0] on cpu"),
    "a meta start": ("conv_weight", ([X], [DY], [3, 3], ONES, ONES, False, meta(W)), "expected start on cpu"),
    "a meta matrix": ("product", ([M], [meta(M.T)]), "expected ms[0] on cpu"),
    "no input": ("conv_output", ([], [], None, ONES, ONES), "as many xs as ws, at least one, got 0 and 0"),
    "no dy": ("conv_input", ([], [], list(X.shape), ONES, ONES), "as many dys as ws, at least one, got 0"),
    "no matrix": ("product", ([], []), "as many xs as ms, at least one, got 0 and 0"),
    "meta panels": ("panel_product", ([M.T], [meta(CUT)], 5, False), "expected panels[0] on cpu"),
    "no panels": ("panel_product", ([], [], 5, True), "as many xs as panels, at least one, got 0 and 0"),
}


@pytest.mark.parametrize("case", DIRECT)
@pytest.mark.parametrize("namespace", ["vleak", "vleak_reference"])
def test_other_devices_and_missing_tensors_are_refused(case: str, namespace: str) -> None:
    name, arguments, message = DIRECT[case]
    with pytest.raises(InputError) as caught:
        getattr(getattr(torch.ops, namespace), name).default(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("implementation", "message"),
    [("native", "gradient_match: lists differ in length"), ("torch", "at least one gradient")],
)
def test_sums_without_gradients_are_refused(implementation: str, message: str) -> None:
    with using(implementation):
        namespace = torch.ops.vleak if implementation == "native" else torch.ops.vleak_reference
        with pytest.raises((InputError, RuntimeError), match=message):
            namespace.gradient_match_partial([], [], [], SUMS, "l2")


def test_all_on_meta_gives_shapes() -> None:
    a, b, sums, x, w, dy, m, cut = (meta(tensor) for tensor in (A, B, SUMS, X, W, DY, M, CUT))
    distance, residuals = torch.ops.vleak.gradient_match([a, b], [a, b], [], "cosine")
    assert [r.shape for r in (distance, *residuals)] == [(), A.shape, B.shape]
    assert torch.ops.vleak.gradient_match_partial([a], [a], [], sums, "l2")[2].shape == (2,)
    assert torch.ops.vleak.conv_output([x], [w], None, ONES, ONES).shape == DY.shape
    assert torch.ops.vleak.conv_input([dy], [w], list(X.shape), ONES, ONES).shape == X.shape
    assert torch.ops.vleak.conv_weight([x], [dy], [3, 3], ONES, ONES).shape == W.shape
    assert torch.ops.vleak.product([m], [m.T]).shape == (8, 8)
    assert torch.ops.vleak.panel_product([m.T], [cut], 5, False).shape == (5, 5)
    assert torch.ops.vleak.panel_product([m], [cut], 5, True).shape == (8, 8)
