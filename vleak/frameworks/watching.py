"""Capture of what a training loop in PyTorch would send: hooks on the optimizer; the loop stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from vleak.errors import CapabilityError, InputError
from vleak.federated import LocalTraining, PublicFacts, Update
from vleak.models import unwrapped_module
from vleak.update_audit import Audit, audit

__all__ = ["Watch", "watch"]


def watch(model: nn.Module, optimizer: Optimizer) -> Watch:
    """Watch the steps of an optimizer, and record what the client would send.

    Training goes on as it would. Gradients are those that the step uses: accumulated, clipped, and without
    the scale of mixed precision. Kept are a copy of the model's state and one gradient.

    Args:
        model: that is trained, as it is or within DataParallel, DistributedDataParallel or torch.compile.
        optimizer: of its parameters.

    Returns:
        a context manager; leaving it ends the watching.

    Raises:
        InputError: the optimizer trains none of the model's parameters, or calls a closure.
    """
    inner, _ = unwrapped_module(model)
    return Watch(inner, optimizer)


@dataclass
class _Seen:
    """What was seen since the last `Watch.reset`."""

    state: dict[str, Tensor] = field(default_factory=dict)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    modes: set[str] = field(default_factory=set)
    settings: list[LocalTraining | str] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Watch:
    """Watching of an optimizer, from `watch`.

    Attributes:
        model: that is trained.
        optimizer: that trains it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Set the hooks; see `watch`."""
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError(_CLOSURE)
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.model, self.optimizer = model, optimizer
        self._names = [n for n, p in model.named_parameters() if p.requires_grad and id(p) in own]
        if not self._names:
            raise InputError(
                "watch: the optimizer trains none of the model's parameters; give those two that belong"
            )
        first = dict(model.named_parameters())[self._names[0]]
        self._seen, self._passes, self._fresh = _Seen(), 0, not optimizer.state
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_forward),
            first.register_post_accumulate_grad_hook(self._after_backward),  # type: ignore[no-untyped-call]
            optimizer.register_step_pre_hook(self._before_step),
        ]

    @property
    def steps(self) -> int:
        """Steps since the last `reset`."""
        return len(self._seen.passes)

    def reset(self) -> None:
        """Forget what was seen: a new round begins."""
        self._seen, self._passes, self._fresh = _Seen(), 0, not self.optimizer.state

    def close(self) -> None:
        """Take the hooks away; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Watch:
        """Return the watch itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks away."""
        self.close()

    def before(self) -> nn.Module:
        """Return a copy of the model as the client was sent it, in eval mode.

        Raises:
            InputError: no step was seen.
        """
        self._need_a_step()
        hooks = self.model._forward_pre_hooks
        kept = dict(hooks)
        for handle in self._handles[:1]:  # the copy would bring the watch and its optimizer along
            hooks.pop(handle.id, None)
        try:
            model = copy.deepcopy(self.model).eval()
        finally:
            hooks.clear()
            hooks.update(kept)
        model.zero_grad()
        model.load_state_dict(self._seen.state)
        return model

    def gradient(self, *, batch_size: int = 1) -> Update:
        """Return the gradient of the first step, as FedSGD sends it.

        Args:
            batch_size: clips behind the step, those of all backward passes that it accumulates together.

        Raises:
            InputError: no step was seen, or the gradient is not finite.
        """
        self._need_a_step()
        facts = PublicFacts("fedsgd", batch_size, mode=self._mode())
        return self._update(self._seen.gradient, facts)

    def delta(self, *, batch_size: int = 1, step_batch: int = 0) -> Update:
        """Return weights now less those before the first step, as FedAvg sends them.

        Args:
            batch_size: clips of the client.
            step_batch: clips of one step; 0 for all of them.

        Raises:
            InputError: no step was seen, or the weights are not finite.
            CapabilityError: the training is none that `LocalTraining` describes: another optimizer, settings
                that changed between steps or differ between parameters, or a momentum from before.
        """
        self._need_a_step()
        local = replace(self._local(), batch_size=step_batch)
        now = dict(self.model.named_parameters())
        delta = {
            name: (now[name].detach().double().cpu() - self._seen.state[name].double().cpu()).float()
            for name in self._names
        }
        return self._update(delta, PublicFacts("fedavg", batch_size, mode=self._mode(), local=local))

    def update(self, *, batch_size: int = 1, step_batch: int = 0) -> Update:
        """Return `gradient` of a single step, `delta` of several."""
        if self.steps == 1:
            return self.gradient(batch_size=batch_size)
        return self.delta(batch_size=batch_size, step_batch=step_batch)

    def audit(
        self, *, input_shape: Sequence[int], batch_size: int = 1, step_batch: int = 0, **more: Any
    ) -> Audit:
        """Audit what was seen; further arguments are those of `vleak.audit`."""
        update = self.update(batch_size=batch_size, step_batch=step_batch)
        return audit(self.before(), update, input_shape=input_shape, **more)

    # --- hooks ----------------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, inputs: object) -> None:
        """Keep the state before batch norm moves its statistics."""
        if not self.steps and not self._passes and torch.is_grad_enabled():
            self._seen.state = _copied(self.model.state_dict())

    def _after_backward(self, parameter: Tensor) -> None:
        self._passes += 1

    def _before_step(self, optimizer: Optimizer, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep the gradient and the settings of a step."""
        if named.get("closure") is not None or any(callable(each) for each in given[1:]):
            raise InputError(_CLOSURE)
        seen = self._seen
        if not self.steps:
            # Weights may have been loaded since the forward pass; statistics moved in it.
            held = _copied(self.model.state_dict())
            weights = {name for name, _ in self.model.named_parameters()}
            seen.state = {
                n: t if n in weights or n not in seen.state else seen.state[n] for n, t in held.items()
            }
            seen.gradient = self._gradient()
        seen.modes.add("train" if self.model.training else "eval")
        seen.settings.append(_settings(optimizer))
        seen.passes.append(self._passes)
        self._passes = 0

    def _gradient(self) -> dict[str, Tensor]:
        """Return the gradient that the step is about to use, without the scale of mixed precision."""
        scale = getattr(self.optimizer, "grad_scale", None)  # set by GradScaler around a fused step
        parameters = dict(self.model.named_parameters())
        found = {}
        for name in self._names:
            gradient = parameters[name].grad
            if gradient is None:
                self._seen.notes.append(f"{name!r} has no gradient, and is sent as 0")
                gradient = torch.zeros_like(parameters[name])
            if gradient.is_sparse:
                gradient = gradient.to_dense()
            found[name] = (gradient.detach().float() / (1.0 if scale is None else scale)).cpu().clone()
        return found

    # --- facts ----------------------------------------------------------------------------------------------

    def _need_a_step(self) -> None:
        if not self.steps:
            raise InputError("watch: no step of the optimizer was seen; train one, then ask for the update")

    def _mode(self) -> Literal["eval", "train"]:
        if len(self._seen.modes) > 1:
            raise CapabilityError("watch: steps were in both modes of the model; reset() between them")
        return "train" if self._seen.modes == {"train"} else "eval"

    def _local(self) -> LocalTraining:
        settings = set(self._seen.settings)
        wrong = [each for each in settings if isinstance(each, str)]
        if wrong:
            raise CapabilityError(f"watch: {wrong[0]}; take gradient() of one step")
        if len(settings) > 1:
            raise CapabilityError(
                "watch: the settings of the optimizer changed between steps; reset() after each"
            )
        (local,) = settings
        assert isinstance(local, LocalTraining)
        if not self._fresh and (local.momentum or local.optimizer == "adam"):
            raise CapabilityError(
                "watch: the optimizer began with a momentum from before, which no server knows; watch a "
                "fresh one"
            )
        return replace(local, steps=self.steps)

    def _update(self, tensors: dict[str, Tensor], facts: PublicFacts) -> Update:
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"watch: {name!r} holds NaN or infinity; is the gradient scaled, or the rate too high?"
                )
        trained = sum(p.requires_grad for p in self.model.parameters())
        notes = list(dict.fromkeys(self._seen.notes))
        most = max(self._seen.passes)
        if most > 1:
            notes.append(
                f"a step accumulates {most} backward passes: a mean over its clips where each loss was "
                "divided by "
                f"{most}, else a sum"
            )
        partial = len(tensors) < trained
        if partial:
            notes.append(
                f"the optimizer trains {len(tensors)} of {trained} parameters; the others are not sent"
            )
        size = sum(4 * tensor.numel() for tensor in tensors.values())
        return Update(tensors, size, facts, partial, tuple(notes))


_CLOSURE = (
    "watch: the optimizer calls a closure, several times a step, so that no single gradient is sent; use one "
    "without, such as SGD"
)


def _copied(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}


def _settings(optimizer: Optimizer) -> LocalTraining | str:
    """Return the settings of a step as `LocalTraining` has them, or why it has not."""
    kinds: dict[type[Optimizer], Literal["sgd", "adam"]] = {SGD: "sgd", Adam: "adam"}
    kind = kinds.get(type(optimizer))
    if kind is None:
        return f"a delta of {type(optimizer).__name__} is not described, only one of SGD or Adam"
    odd = {"nesterov": False, "dampening": 0, "maximize": False, "amsgrad": False, "betas": (0.9, 0.999),
           "eps": 1e-8, "decoupled_weight_decay": False}  # fmt: skip
    found = set()
    for group in optimizer.param_groups:
        for name, usual in odd.items():
            if group.get(name, usual) != usual:
                return f"a delta of {type(optimizer).__name__} with {name}={group[name]} is not described"
        found.add((float(group["lr"]), float(group.get("momentum", 0.0)), float(group["weight_decay"])))
    if len(found) > 1:
        return "groups of parameters have settings of their own, which a delta does not describe"
    ((rate, momentum, decay),) = found
    try:
        return LocalTraining(learning_rate=rate, momentum=momentum, weight_decay=decay, optimizer=kind)
    except InputError as error:
        return str(error)
