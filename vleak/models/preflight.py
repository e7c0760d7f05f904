"""Checks of a model before a run: its input, its output, and whether it can be differentiated twice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from vleak.errors import CapabilityError, InputError
from vleak.switches import differentiable_rnn, math_attention

_REMEDIES = {
    "scaled_dot_product": "run attention on its math backend (vleak does, unless the model forces another)",
    "hardsigmoid": "replace nn.Hardsigmoid by relu6(x + 3) / 6",
    "hardswish": "replace nn.Hardswish by x * relu6(x + 3) / 6",
    "aot_autograd": "pass the model as it was before torch.compile",
    "checkpoint": "use torch.utils.checkpoint with use_reentrant=False",
}


def check_classifier(model: nn.Module, clip: Tensor, classes: int) -> int:
    """Check weights, input and output of a classifier; return its number of logits.

    Args:
        model: classifier, as from `build_model`.
        clip: one input clip (1, C, T, H, W) in [0, 1]; moved to the model's device.
        classes: number of classes in the data.

    Raises:
        InputError: no parameters, NaN weights, an input that does not fit, or an output that is not logits
            of shape (clip, class) with at least as many classes as the data has.
    """
    _check_weights(model)
    logits = _answer(
        model, clip, f"a clip of shape {tuple(clip.shape)} (clip, channel, frame, height, width)",
        "choose `frames` and `size` that fit it",
    )  # fmt: skip
    return _check_logits(logits, classes, "clip")


def check_head(head: nn.Module, features: Tensor, loss: str, classes: int | None = None) -> int:
    """Check weights, input and output of a head; return its number of logits, or of scores a bag.

    Args:
        head: head, as from `build_head`, wrapped in a `BagPair` for the loss "ranking".
        features: one feature matrix (1, S, F), or one pair (1, 2, S, F) for "ranking"; moved to its device.
        loss: name of the loss that it is trained with: "cross_entropy", "bce" or "ranking".
        classes: number of classes in the data, for "cross_entropy".

    Raises:
        InputError: no parameters, NaN weights, an input that does not fit, or an output that does not fit
            the loss: logits (1, classes) for "cross_entropy", scores in [0, 1] of shape (1, S or 1, 1) for
            "bce" and (1, 2, S or 1, 1) for "ranking".
    """
    _check_weights(head)
    shape_text = f"features of shape {tuple(features.shape)}"
    answers = _answer(head, features, shape_text, "choose an extractor and segments that fit it")
    if loss == "cross_entropy":
        return _check_logits(answers, classes or 1, "feature matrix")
    pair = loss == "ranking"
    front, segments = ((1, 2), features.shape[-2]) if pair else ((1,), features.shape[-2])
    shapes = [(*front, count, 1) for count in dict.fromkeys((segments, 1))]
    if not isinstance(answers, Tensor) or tuple(answers.shape) not in shapes:
        raise InputError(
            f"the head returned {_shape(answers)} for {shape_text}, expected scores of shape "
            f"{' or '.join(map(str, shapes))} for the loss {loss!r}; return one score in [0, 1] a segment"
            + (", and wrap the head in BagPair" if pair else "")
        )
    if not ((answers >= 0) & (answers <= 1)).all():
        raise InputError(
            f"the head returned scores from {answers.min():.3g} to {answers.max():.3g}, expected [0, 1]; end "
            "it with a sigmoid, or check its weights"
        )
    return int(answers.shape[-2])


def _check_weights(model: nn.Module) -> None:
    if not any(True for _ in model.parameters()):
        raise InputError(
            "the model has no parameters, so there is no update to attack; give a trainable model"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"weight {name!r} of the model holds NaN or infinity; load other weights")


def _answer(model: nn.Module, inputs: Tensor, what: str, remedy: str) -> object:
    try:
        with torch.no_grad():
            return model(inputs.to(next(model.parameters()).device))
    except Exception as error:
        first = _first_line(str(error)) or type(error).__name__
        raise InputError(f"the model does not take {what}: {first}; {call_remedy(model, remedy)}") from error


def call_remedy(model: nn.Module, otherwise: str) -> str:
    """Return what to do where a call with one tensor fails: another remedy where the model asks for more."""
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError:
        return "wrap the model in a module whose forward takes one tensor and calls it with all that it needs"
    except ValueError:  # a builtin has no signature
        return otherwise
    return otherwise


def _check_logits(logits: object, classes: int, noun: str) -> int:
    if (
        not isinstance(logits, Tensor)
        or logits.shape[:1] != (1,)
        or logits.ndim != 2
        or logits.shape[1] < classes
    ):
        raise InputError(
            f"the model returned {_shape(logits)} for one {noun}, expected logits of shape (1, {classes}): "
            "(clip, class); return the class scores alone"
        )
    if not torch.isfinite(logits).all():
        raise InputError(f"the model returned NaN or infinite logits for a {noun}; check its weights")
    return int(logits.shape[1])


def _shape(answer: object) -> object:
    return tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__


Loss = Callable[[Tensor, Tensor], Tensor]


def check_second_derivative(model: nn.Module, clip: Tensor, loss: Loss = F.cross_entropy) -> None:
    """Compute one mixed second derivative d<dL/dw, dL/dw>/dx, as gradient matching needs it, as a check.

    Args:
        model: a classifier that passed `check_classifier`, or a head that passed `check_head`.
        clip: one clip (1, C, T, H, W) in [0, 1], or features (1, ...); moved to the model's device.
        loss: (logits or scores, labels) -> scalar, the client's training loss.

    Raises:
        CapabilityError: an operator of the model cannot be differentiated twice (the message names it and
            the remedy), or the clip has no influence on the gradient.
    """
    x = clip.detach().to(next(model.parameters()).device, copy=True).requires_grad_()
    try:
        with math_attention(), differentiable_rnn(model), torch.enable_grad():
            influence = _influence(model, x, loss)
    except (RuntimeError, NotImplementedError) as error:
        raise CapabilityError(_explain(str(error) or type(error).__name__)) from error
    if not torch.isfinite(influence).all() or not influence.any():
        raise CapabilityError(
            "the clip has no finite influence on the model's gradient; is it detached inside the model?"
        )


def _influence(model: nn.Module, x: Tensor, loss_of: Loss) -> Tensor:
    """Return d<g, g>/dx for g = dL/dw, shaped like x; zero where the model cuts the graph."""
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    label = torch.zeros(1, dtype=torch.long, device=x.device)
    loss = loss_of(functional_call(model, parameters, (x,)), label)
    norm = x.new_zeros(())
    if loss.requires_grad:
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        norm = torch.stack([(g * g).sum() for g in gradients]).sum()
    if not norm.requires_grad:
        return torch.zeros_like(x)
    (influence,) = torch.autograd.grad(norm, x, allow_unused=True, materialize_grads=True)
    return influence


def _explain(message: str) -> str:
    match = re.search(r"derivative for (\S+) is not implemented", message)
    why = f"{match.group(1)} has no second derivative" if match else _first_line(message)
    remedy = next(
        (text for key, text in _REMEDIES.items() if key in message.lower()),
        "replace that layer by one built from ordinary operators",
    )
    return f"the model cannot be attacked by gradient matching: {why}; {remedy}"


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0]
