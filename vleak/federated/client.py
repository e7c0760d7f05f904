"""An honest client: one FedSGD step on a private batch, through a defense."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.errors import CapabilityError, InputError, unknown_name
from vleak.federated.defense import Defense
from vleak.federated.gradients import Loss
from vleak.federated.update import Update

LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy}
"""Losses by name, each a mean over the clips of the batch."""


class Client:
    """Computes what one client sends after one look at its batch (FedSGD).

    In mode "eval" (default) dropout is off and batch norm uses its running statistics, so that the gradient
    can be reproduced from clip and weights alone. Mode "train" lets batch norm use the batch; a model that
    draws random numbers there is refused. The gradient covers every parameter, frozen ones included: to
    send only a trained head, pass the head as the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str = "cross_entropy",
        defense: Defense = Defense(),
        *,
        mode: str = "eval",
    ) -> None:
        """Check the model's parameters and the names.

        Args:
            model: maps (N, C, T, H, W) in [0, 1] to logits (N, classes), with float32 parameters.
            loss: "cross_entropy", the mean over the clips.
            defense: what the client does against leakage; the default does nothing.
            mode: "eval" or "train".

        Raises:
            InputError: unknown loss or mode, or the model has no parameters.
            CapabilityError: a parameter is not float32.
        """
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        if mode not in ("eval", "train"):
            raise unknown_name("mode", mode, ("eval", "train"))
        self.model, self.loss, self.defense, self.mode = model, loss, defense, mode
        self._check_parameters()

    def __repr__(self) -> str:
        """Show what the client trains and how it defends itself."""
        return f"Client({type(self.model).__name__}, {self.loss!r}, {self.defense!r}, mode={self.mode!r})"

    def update(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> Update:
        """Compute one update; the model is left exactly as it was.

        Args:
            clips: (N, C, T, H, W) float32 in [0, 1].
            labels: (N,) int64, each below the model's number of classes.
            generator: CPU generator of this cell; the only source of randomness.

        Returns:
            float32 tensors on the CPU, with public metadata only: kind, batch_size, loss, mode.

        Raises:
            InputError: clips, labels or weights cannot be used.
            CapabilityError: the model cannot take the clips, does not return logits, or draws random numbers.
        """
        _check_batch(clips, labels)
        self._check_parameters()
        device = next(self.model.parameters()).device
        clips, labels = self.defense.prepare_clips(clips.to(device), labels.to(device), generator)
        with _mode(self.model, training=self.mode == "train"):
            _check_labels(labels, self._logits(clips).shape[1])
            gradient = self.defense.aggregate(self.model, LOSSES[self.loss], clips, labels, generator)
        for name, tensor in gradient.items():
            if not torch.isfinite(tensor).all():
                raise CapabilityError(
                    f"the gradient of parameter {name!r} is not finite; check the model for overflow"
                )
        message = self.defense.transmit(gradient, generator)
        metadata = {"kind": "fedsgd", "batch_size": len(clips), "loss": self.loss, "mode": self.mode}
        return Update(message.tensors, message.wire_bytes, metadata)

    def _check_parameters(self) -> None:
        """Refuse weights that no gradient can be had from."""
        parameters = dict(self.model.named_parameters())
        if not parameters:
            raise InputError(f"model {type(self.model).__name__} has no parameters, so it has no gradient")
        for name, tensor in parameters.items():
            if tensor.dtype != torch.float32:
                raise CapabilityError(f"parameter {name!r} is {tensor.dtype}, not float32; use model.float()")
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"parameter {name!r} of the model holds NaN or infinity; train or load it again"
                )
        for name, buffer in self.model.named_buffers():
            if torch.isnan(buffer).any():  # infinity is what a causal mask is made of
                raise InputError(f"buffer {name!r} of the model holds NaN; train or load it again")

    def _logits(self, clips: Tensor) -> Tensor:
        """Run the model once and refuse what is not a finite (clip, class) table; returns (N, classes)."""
        # Through copies of the buffers: in mode "train" batch norm would move its statistics.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        given = f"clips of shape {tuple(clips.shape)}"
        with torch.no_grad(), _no_random_draws(clips.device, self.mode):
            try:
                logits = torch.func.functional_call(self.model, buffers, (clips,))
            except (RuntimeError, ValueError) as error:
                why = str(error).strip().partition("\n")[0]
                raise CapabilityError(f"the model failed on {given}: {why}; check frames and size") from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(clips):
            raise CapabilityError(
                f"model returned {shape} for {given}, expected logits (clip, class) with {len(clips)} rows; "
                "wrap the model so that its forward returns them"
            )
        if not torch.isfinite(logits).all():
            raise CapabilityError(f"model returned NaN or infinite logits for {given}; check it for overflow")
        return logits


def _check_batch(clips: Tensor, labels: Tensor) -> None:
    """Refuse clips that are not (N, C, T, H, W) float32 in [0, 1] and labels that are not (N,) int64."""
    expected = "expected clips of shape (clip, channel, frame, height, width), float32 in [0, 1]"
    if clips.dim() != 5 or clips.numel() == 0:
        hint = "; add the clip axis with x[None]" if clips.dim() == 4 else ""
        raise InputError(f"client: {expected}, got shape {tuple(clips.shape)}{hint}")
    if clips.dtype != torch.float32:
        raise InputError(f"client: {expected}, got {clips.dtype}; convert with .float() and scale to [0, 1]")
    if not (clips.min() >= 0 and clips.max() <= 1):
        given = f"{clips.min():.3g} to {clips.max():.3g}"
        raise InputError(f"client: {expected}, got values from {given}; scale 8-bit pixels by 1/255")
    if labels.dtype != torch.int64 or labels.shape != clips.shape[:1]:
        given = f"{tuple(labels.shape)}, {labels.dtype}"
        raise InputError(f"client: expected labels of shape ({len(clips)},), int64, one a clip, got {given}")


def _check_labels(labels: Tensor, classes: int) -> None:
    """Refuse a label that the model has no output for."""
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"client: labels run from {labels.min()} to {labels.max()}, but the model has {classes} classes; "
            f"expected 0 to {classes - 1}"
        )


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model into one mode and every module back into its own."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextmanager
def _no_random_draws(device: torch.device, mode: str) -> Iterator[None]:
    """Refuse a model that draws from the process-wide generators, and put these back."""
    before = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    yield
    drew = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    if cuda is not None:
        drew = drew or not torch.equal(cuda, torch.cuda.get_rng_state(device))
        torch.cuda.set_rng_state(cuda, device)
    if drew:
        raise CapabilityError(
            f"the model draws random numbers in mode {mode!r} (active dropout?), so that its gradient cannot "
            'be reproduced; use mode="eval" or set every dropout to 0'
        )
