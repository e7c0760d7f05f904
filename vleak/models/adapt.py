"""Adapters: classifiers that take clips in another layout, or return more than logits, as vleak calls them.

The adapter is a pair of hooks on the module itself, so that parameters keep their names, a capture records
what the hooks do, and derivatives of any order pass through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vleak.errors import InputError, first_line
from vleak.models.build import drawing
from vleak.models.preflight import call_remedy
from vleak.models.unwrap import copy_of
from vleak.registry import read_settings

__all__ = ["Adapted", "Layout", "Reading", "adapt", "find_reading", "read_layout"]


@dataclass(frozen=True)
class Layout:
    """Order in which a model takes the axes of clips.

    Attributes:
        kind: "NCTHW", "NTCHW", or "pathways" for a list of slow and fast clips, both NCTHW, as SlowFast takes
            them (Feichtenhofer et al., ICCV 2019, arXiv 1812.03982).
        alpha: the slow pathway has every alpha-th frame, from the first on.
    """

    kind: str = "NCTHW"
    alpha: int = 4

    def __str__(self) -> str:
        """Text that `read_layout` reads."""
        return f"pathways:alpha={self.alpha}" if self.kind == "pathways" else self.kind

    def __call__(self, clips: Tensor) -> Tensor | list[Tensor]:
        """Return clips (N, C, T, H, W) as the model takes them."""
        if self.kind == "NTCHW":
            return clips.transpose(1, 2)
        return [clips[:, :, :: self.alpha], clips] if self.kind == "pathways" else clips


@dataclass(frozen=True)
class Reading:
    """Where the logits are in what a model returns.

    Attributes:
        path: keys, attributes and positions from the answer to the tensor.
        averaged: axis of frames that is averaged; None without one.
        flat: whether the axes behind the first two have length 1 and are dropped.
        binary: whether one logit z stands for the two (0, z).
    """

    path: tuple[str | int, ...] = ()
    averaged: int | None = None
    flat: bool = False
    binary: bool = False

    def __call__(self, answer: Any) -> Tensor:
        """Return logits (N, classes)."""
        for step in self.path:
            answer = _follow(answer, step)
        logits: Tensor = answer if self.averaged is None else answer.mean(self.averaged)
        if self.flat:
            logits = logits.flatten(1)
        if self.binary:
            logits = logits.reshape(-1, 1)
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits

    def notes(self) -> Iterator[str]:
        """What is read, a sentence each; nothing for logits alone."""
        if self.path:
            yield f"logits are read from {'.'.join(map(str, self.path))} of what the model returns"
        if self.averaged is not None:
            yield f"logits of frames are averaged (axis {self.averaged} of the output)"
        if self.binary:
            yield "one logit z is read as the logits (0, z) of two classes"


class Adapted(NamedTuple):
    """A classifier from clips (N, C, T, H, W) in [0, 1] to logits (N, classes).

    Attributes:
        module: in eval mode.
        notes: what was found out about it, a sentence each.
    """

    module: nn.Module
    notes: tuple[str, ...]


def read_layout(text: str) -> Layout | None:
    """Return the layout of a text; None for "auto".

    Raises:
        InputError: the text is none of "auto", "NCTHW", "NTCHW" and "pathways:alpha=4".
    """
    name, _, rest = text.partition(":")
    if text == "auto":
        return None
    if text in ("NCTHW", "NTCHW"):
        return Layout(text)
    if name != "pathways":
        raise InputError(
            f"input_layout={text}: expected auto, NCTHW, NTCHW or pathways:alpha=4, the order of the axes "
            "clip, channel, frame, height, width"
        )
    alpha = read_settings("input layout", name, rest, {"alpha": Layout.alpha}).get("alpha", Layout.alpha)
    if not 1 <= int(alpha) <= 1024:
        raise InputError(f"input_layout={text}: alpha is {alpha}, expected a whole number from 1 to 1024")
    return Layout(name, int(alpha))


_TRIED = (Layout(), Layout("NTCHW"), *(Layout("pathways", alpha) for alpha in (4, 8, 2)))
"""Layouts in the order in which they are tried."""


def adapt(
    model: nn.Module, shape: tuple[int, ...], classes: int, *, layout: Layout | None, seed: int
) -> Adapted:
    """Find out how a classifier takes clips and where its logits are, and adapt it.

    One forward pass on zeros a layout, in eval mode and without gradient, tells; the first layout with
    logits for every class is taken. The pass also gives lazy layers their shapes and weights.

    Args:
        model: on the CPU; changed, and not to be used after this.
        shape: (C, T, H, W) of a clip.
        classes: number of classes of the data.
        layout: the only one to try; None for all.
        seed: of the weights of lazy layers.

    Raises:
        InputError: it takes the clips in none of the layouts, or what it returns holds no logits for so many
            classes, or it keeps what it cannot be copied with.
    """
    failed: list[_Trial] = []
    for tried in _TRIED if layout is None else (layout,):
        trial = _try(model.eval(), tried, shape, seed)
        if trial.error is None and (reading := find_reading(trial.answer, classes)) is not None:
            adapted = _adapted(trial, reading, classes, found=layout is None)
            _check_kept(adapted.module, shape, seed)
            return adapted
        failed.append(trial)
    raise _refusal(failed, shape, classes)


def _refusal(trials: list[_Trial], shape: tuple[int, ...], classes: int) -> InputError:
    """Error for a model that answers in no layout, or in none with logits."""
    ran = [trial for trial in trials if trial.error is None]
    if ran:
        return InputError(
            f"the model returned {_described(ran[0].answer)} for one clip, expected logits of shape "
            f"(1, {classes}): (clip, class); return the class scores of at least {classes} classes"
        )
    return InputError(
        f"the model does not take a clip of shape {(1, *shape)} as {trials[0].layout} (clip, channel, frame, "
        f"height, width): {trials[0].error}{_others(trials)}; "
        + call_remedy(trials[0].module, "choose `frames` and `size` that fit it")
    )


def _others(trials: list[_Trial]) -> str:
    kinds = list(dict.fromkeys(trial.layout.kind for trial in trials[1:]))
    return f"; nor as {' or '.join(kinds)}" if kinds else ""


class _Trial(NamedTuple):
    """One forward pass: the module that made it, and its answer or error."""

    layout: Layout
    module: nn.Module
    answer: Any = None
    error: str | None = None


def _try(model: nn.Module, layout: Layout, shape: tuple[int, ...], seed: int) -> _Trial:
    """Make one forward pass on zeros; a lazy model makes it on a copy, which the pass gives its shapes."""
    lazy = any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()])
    model = copy_of(model) if lazy else model
    try:
        with torch.no_grad(), drawing(seed):
            return _Trial(layout, model, model(layout(torch.zeros(1, *shape))))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a stranger's model may raise anything; it is told
        told = first_line(error) if isinstance(error, Exception) else ""
        return _Trial(layout, model, error=told or repr(error))


def _check_kept(module: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    """Refuse a model that keeps of a forward pass what it cannot be copied with afterwards."""
    with torch.enable_grad(), drawing(seed):
        module(torch.zeros(1, *shape))
    copy_of(module)


def _adapted(trial: _Trial, reading: Reading, classes: int, *, found: bool) -> Adapted:
    module, layout = trial.module, trial.layout
    if layout.kind != "NCTHW":
        module.register_forward_pre_hook(_Arrange(layout), prepend=True)
    if reading != Reading():
        module.register_forward_hook(_Read(reading))
    logits = reading(trial.answer)
    notes = list(reading.notes())
    if layout.kind != "NCTHW":
        how = "found by a forward pass" if found else "as asked"
        notes.insert(0, f"takes clips as {layout} ({how})")
    if logits.shape[1] > classes:
        notes.append(f"has {logits.shape[1]} logits for {classes} classes, which are the first {classes}")
    if logits.shape[1] > 1 and not reading.binary and _is_softmax(logits):
        notes.append(
            "its output is at least 0 and sums to 1, like that of a softmax, and is taken for logits; "
            "return what goes into the softmax"
        )
    return Adapted(module, tuple(notes))


def _is_softmax(logits: Tensor) -> bool:
    return bool((logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-4)


@dataclass(frozen=True)
class _Arrange:
    """Hook before a forward pass."""

    layout: Layout

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.layout(arguments[0]), *arguments[1:])


@dataclass(frozen=True)
class _Read:
    """Hook after a forward pass."""

    reading: Callable[[Any], Tensor]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> Tensor:
        return self.reading(answer)


# ---- what a model returns


def find_reading(answer: object, classes: int) -> Reading | None:
    """Find the logits of one clip: the first tensor with one logit a class, or the first with more.

    Args:
        answer: what a model returned for one clip: a tensor, a tuple or list, or a mapping or an object with
            "logits".
        classes: number of classes of the data.

    Returns:
        the way to the logits; None where there are none.
    """
    readings = list(_readings(answer, classes))
    exact = [reading for reading in readings if reading(answer).shape[1] == classes]
    return next(iter(exact or readings), None)


def _readings(answer: object, classes: int) -> Iterator[Reading]:
    for path, tensor in _tensors(answer):
        if tensor.is_floating_point() and tensor.shape[:1] == (1,):
            fit = _fit(tuple(tensor.shape), classes)
            if fit is not None:
                yield Reading(path, **fit)


def _tensors(
    answer: object, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """Tensors of an answer that may be logits, with the ways to them."""
    if isinstance(answer, Tensor):
        yield path, answer
    elif "logits" in answer if isinstance(answer, Mapping) else hasattr(answer, "logits"):
        yield from _tensors(_follow(answer, "logits"), (*path, "logits"))
    elif isinstance(answer, tuple | list):
        for index, item in enumerate(answer):
            yield from _tensors(item, (*path, index))


def _follow(answer: Any, step: str | int) -> Any:
    by_key = isinstance(step, int) or isinstance(answer, Mapping)
    return answer[step] if by_key else getattr(answer, str(step))


def _fit(shape: tuple[int, ...], classes: int) -> dict[str, Any] | None:
    """How an output of one clip is read; None where it has no logits of so many classes."""
    wide = [length >= classes for length in shape[1:]]
    binary = classes == 2
    if len(shape) == 1:
        return {"binary": True} if binary else None
    flat = len(shape) > 2 and set(shape[2:]) == {1} and (len(shape) > 3 or shape[1] == classes)
    if len(shape) == 2 or flat:
        single = binary and shape[1] == 1
        return {"flat": flat, "binary": single} if wide[0] or single else None
    if len(shape) != 3:
        return None
    if shape[1] == classes != shape[2]:
        return {"averaged": 2}
    if binary and shape[2] == 1:
        return {"averaged": 1, "binary": True}
    return {"averaged": 1} if wide[1] else None


def _described(answer: object) -> object:
    if isinstance(answer, Tensor):
        return tuple(answer.shape)
    if isinstance(answer, Mapping):
        return f"{type(answer).__name__} with the keys {', '.join(map(str, list(answer)[:6]))}"
    if isinstance(answer, tuple | list):
        return f"{type(answer).__name__} of {', '.join(str(_described(item)) for item in answer[:6])}"
    return type(answer).__name__
