"""An honest client: one gradient, or some steps of local training, on a private batch, through a defense."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vleak.errors import CapabilityError, InputError, VleakError, argument, first_line, require, unknown_name
from vleak.federated import steps
from vleak.federated.channel import Channel
from vleak.federated.defense import Defense, Message, Privacy
from vleak.federated.dropout import draw_masks, drops, one_pass, with_masks
from vleak.federated.local import LocalTraining
from vleak.federated.losses import LOSSES, UNITS, expected_output, output_fits
from vleak.federated.trained import local_delta, refuse_all_frozen, trained_part
from vleak.federated.update import MODES, PublicFacts, Update
from vleak.seeds import fork, generator


class Client:
    """Client that computes one update of its batch, through its defense.

    The update is the gradient of the batch (FedSGD), or with ``local`` how the weights move in local training
    (FedAvg).

    A private sample is called a clip, also where it is the feature matrix (S, F) of a clip, or a pair of
    them (2, S, F) for the loss "ranking".

    In mode "eval" (default) dropout is off and batch norm uses its running statistics, so that the gradient
    can be reproduced from clip and weights alone. Mode "train" lets batch norm use the batch, and
    draws the masks of dropout layers from the client's generator, a row for each clip, anew in every local
    step; a model that draws other random numbers is refused. Parameters with ``requires_grad=False`` are not
    trained, not clipped and not sent.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str = "cross_entropy",
        defense: Defense = Defense(),
        *,
        mode: Literal["eval", "train"] = "eval",
        local: LocalTraining | None = None,
    ) -> None:
        """Check the model's parameters and the names.

        Args:
            model: maps clips (N, C, T, H, W) in [0, 1], or features (N, S, F), to logits (N, classes) for
                "cross_entropy" or scores (N, S, 1) in [0, 1] for "bce"; for "ranking" pairs (N, 2, S, F) to
                scores (N, 2, S, 1), see `vleak.models.BagPair`. With float32 parameters.
            loss: "cross_entropy", "bce" or "ranking" (`vleak.federated.losses`), a mean over the clips.
            defense: what the client does against leakage; the default does nothing.
            mode: "eval" or "train".
            local: how the client trains before it sends a delta; None for the gradient of one batch.

        Raises:
            InputError: unknown loss or mode, or the model has no parameters that are not frozen.
            CapabilityError: a parameter is not float32, or the defense cannot extend the model.
        """
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        require("client: model", model, nn.Module, "a torch.nn.Module")
        if not isinstance(defense, Defense):
            raise InputError(f"defense is {defense!r}, expected an object of vleak.Defense, such as DpSgd()")
        self.model, self.loss, self.defense, self.mode, self.local = model, loss, defense, mode, local
        self._check_parameters()
        self.model = steps.extend_model(defense, model)

    def __repr__(self) -> str:
        """Return the client in one line: model, loss, defense and mode."""
        local = "" if self.local is None else f", local={self.local!r}"
        return (
            f"Client({type(self.model).__name__}, {self.loss!r}, {self.defense!r}, mode={self.mode!r}{local})"
        )

    def update(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: dict[str, Tensor] | None = None,
    ) -> Update:
        """Compute one update; the model is left exactly as it was.

        Args:
            clips: (N, C, T, H, W) float32 in [0, 1], or features (N, S, F) or (N, 2, S, F), float32, finite.
            labels: (N,) int64, each below the model's number of classes; 0 or 1 for "bce", ignored for
                "ranking".
            generator: CPU generator of this cell; the only source of randomness.
            memory: what a defense with error feedback withheld in earlier rounds; changed in place. None
                for the first round, or where nothing is carried on.

        Returns:
            float32 tensors on the CPU, with public facts only.

        Raises:
            InputError: clips, labels or weights cannot be used.
            CapabilityError: the model cannot take the clips, does not return what the loss takes, or draws
                random numbers; or the defense refuses, raises or breaks its contract (`vleak.Defense`).
        """
        _check_batch(clips, labels, self.loss)
        self._check_parameters()
        device = next(self.model.parameters()).device
        clips, labels = clips.to(device), labels.to(device)
        memory = {} if memory is None else memory
        first, messages, sizes = not memory, [], []
        for number, part in enumerate(steps.parts_of(self.defense, len(clips))):
            kept = _memory_of(memory, number) if number else memory
            message, size = self._message(clips[part], labels[part], generator, kept)
            if number:
                memory.update({_of_client(number, name): tensor for name, tensor in kept.items()})
            messages.append(message)
            sizes.append(size)
        message = steps.summed(messages)
        kind: Literal["fedsgd", "fedavg"] = "fedsgd" if self.local is None else "fedavg"
        facts = PublicFacts(
            kind=kind, batch_size=sum(sizes), loss=self.loss, mode=self.mode, local=self.local
        )
        update = Update(
            message.tensors, message.wire_bytes, facts, metrics=message.metrics, senders=message.senders
        )
        if first:
            steps.check_first(self.defense, update)
        return update

    def _message(
        self,
        clips: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        memory: dict[str, Tensor],
    ) -> tuple[Message, int]:
        """Return what is sent of some clips, and of how many the defense made it."""
        clips, labels = steps.prepare_clips(self.defense, clips, labels, generator)
        model, loss = trained_part(self.model), LOSSES[self.loss]
        model, masks = self._masked(model, generator)
        with _mode(model, training=self.mode == "train"):
            _check_labels(labels, self.loss, self._outputs(model, clips, masks))
            if self.local is None:
                tensors = steps.aggregate(self.defense, model, loss, clips, labels, generator, memory)
            else:
                tensors = local_delta(
                    self.defense, model, loss, clips, labels, local=self.local, generator=generator,
                    masks=masks, memory=memory,
                )  # fmt: skip
        return steps.transmit(self.defense, tensors, generator, memory), len(clips)

    def check_model(self, clips: Tensor | None = None) -> None:
        """Refuse a model that the defense or the mode cannot serve, before any update is computed.

        Args:
            clips: a batch as `update` takes it, on which the mode is tried; None to ask the defense alone.

        Raises:
            CapabilityError: the defense refused it, or raised; or the model cannot take the clips, does not
                return what the loss takes, or draws random numbers.
        """
        steps.check_model(self.defense, self.model)
        if clips is None:
            return
        model, masks = self._masked(self.model, generator(0, "masks of a check"))
        with _mode(model, training=self.mode == "train"):
            self._outputs(model, clips.to(next(model.parameters()).device), masks)

    def channel(self, update: Update) -> Channel | None:
        """Return the channel that the defense states for one of its updates; None where it states none.

        Raises:
            CapabilityError: the defense raised, or its channel does not fit the update.
        """
        return steps.stated_channel(self.defense, update)

    def privacy(self, clips: int = 1, updates: int = 1) -> Privacy | None:
        """Return the certificate of the client's updates; None without one.

        Args:
            clips: how many the client trains on, which says in how many local steps one takes part.
            updates: how many updates about the same clips it sends, one a round.
        """
        uses = 1 if self.local is None else self.local.uses(clips)
        proven = steps.stated_privacy(self.defense, uses, updates)
        row = UNITS[self.loss]
        if proven is None or proven.unit == "one client" or (proven.unit != "one clip" and row == "one clip"):
            return proven
        return replace(proven, unit=row)  # a clip, or video, is what a row of the batch is

    def _masked(
        self, model: nn.Module, generator: torch.Generator
    ) -> tuple[nn.Module, torch.Generator | None]:
        """Return the model as the mode has it, and the generator of its masks; None where it has none."""
        if self.mode == "eval" or not drops(model):
            return model, None
        # Numbers of their own: what a defense draws in between must not decide on the masks.
        return with_masks(model), fork(generator)

    def _check_parameters(self) -> None:
        """Refuse weights that no gradient can be had from."""
        parameters = dict(self.model.named_parameters())
        if not parameters:
            raise InputError(f"model {type(self.model).__name__} has no parameters, so it has no gradient")
        refuse_all_frozen(self.model)
        for name, tensor in parameters.items():
            if is_lazy(tensor):
                raise InputError(f"parameter {name!r} has no shape yet; run the model on a clip once before")
            if tensor.dtype != torch.float32:
                raise CapabilityError(f"parameter {name!r} is {tensor.dtype}, not float32; use model.float()")
            # The sum of millions of weights is had in a tenth of the time, and may only overflow besides.
            if not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise InputError(
                    f"parameter {name!r} of the model holds NaN or infinity; train or load it again"
                )
        for name, buffer in self.model.named_buffers():
            if torch.isnan(buffer).any():  # infinity is what a causal mask is made of
                raise InputError(f"buffer {name!r} of the model holds NaN; train or load it again")

    def _outputs(self, model: nn.Module, clips: Tensor, masks: torch.Generator | None) -> Tensor:
        """Run the model once, drawing its masks, and refuse what the loss cannot take; returns its output."""
        batch = f"{_NOUNS[clips.dim()]} of shape {tuple(clips.shape)}"
        with torch.no_grad(), _no_random_draws(clips.device, self.mode):
            try:
                outputs = one_pass(model, clips) if masks is None else draw_masks(model, clips, masks)
            except VleakError:
                raise
            except (RuntimeError, ValueError) as error:
                why = first_line(error)
                fit = "frames and size" if clips.dim() == 5 else "segments and features"
                raise CapabilityError(f"the model failed on {batch}: {why}; check {fit}") from error
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(outputs, Tensor) or not output_fits(self.loss, outputs, len(clips)):
            raise CapabilityError(
                f"model returned {shape} for {batch}, expected {expected_output(self.loss)} with "
                f"{len(clips)} rows; wrap the model so that its forward returns them"
            )
        kind = "logits" if self.loss == "cross_entropy" else "scores"
        if not torch.isfinite(outputs).all():
            raise CapabilityError(f"model returned NaN or infinite {kind} for {batch}; check it for overflow")
        if kind == "scores" and not ((outputs >= 0) & (outputs <= 1)).all():
            raise CapabilityError(
                f"model returned scores from {outputs.min():.3g} to {outputs.max():.3g} for {batch}, "
                f"expected [0, 1] for loss {self.loss!r}; end the model with a sigmoid"
            )
        return outputs


def _of_client(number: int, name: str) -> str:
    """Return the name of a tensor in the memory of another client of a sum."""
    return f"client {number}/{name}"


def _memory_of(memory: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return what another client of a sum keeps between rounds."""
    start = _of_client(number, "")
    return {name.removeprefix(start): t for name, t in memory.items() if name.startswith(start)}


_NOUNS = {3: "features", 4: "pairs of features", 5: "clips"}


def _check_batch(clips: Tensor, labels: Tensor, loss: str) -> None:
    """Refuse a batch that is not of the kind that the loss takes, and labels that are not (N,) int64."""
    for name, value in (("clips", clips), ("labels", labels)):
        require(f"client: {name}", value, Tensor, "a torch.Tensor")
    if loss == "ranking":
        _check_pairs(clips)
    elif clips.dim() != 3:
        _check_clips(clips)
    _check_features(clips)
    if labels.dtype != torch.int64 or labels.shape != clips.shape[:1]:
        actual = f"{tuple(labels.shape)}, {labels.dtype}"
        raise InputError(f"client: expected labels of shape ({len(clips)},), int64, one a clip, got {actual}")


def _check_pairs(pairs: Tensor) -> None:
    """Refuse what is not a batch of pairs (N, 2, S, F)."""
    if pairs.dim() != 4 or pairs.shape[1] != 2:
        raise InputError(
            "client: the loss 'ranking' compares two bags, expected features of shape (pair, 2, segment, "
            f"feature), got {tuple(pairs.shape)}; stack an anomalous and a normal bag to each pair"
        )


def _check_clips(clips: Tensor) -> None:
    """Refuse what is not a batch of clips (N, C, T, H, W), float32 in [0, 1]."""
    expected = "expected clips of shape (clip, channel, frame, height, width), float32 in [0, 1]"
    if clips.dim() != 5 or clips.numel() == 0:
        hint = "; add the clip axis with x[None]" if clips.dim() == 4 else ""
        raise InputError(
            f"client: {expected}, or features (clip, segment, feature), got shape {tuple(clips.shape)}{hint}"
        )
    if clips.dtype != torch.float32:
        raise InputError(f"client: {expected}, got {clips.dtype}; convert with .float() and scale to [0, 1]")
    if not (clips.min() >= 0 and clips.max() <= 1):
        actual = f"{clips.min():.3g} to {clips.max():.3g}"
        raise InputError(f"client: {expected}, got values from {actual}; scale 8-bit pixels by 1/255")


def _check_features(features: Tensor) -> None:
    """Refuse an empty batch and what is not finite float32."""
    if features.numel() == 0:
        raise InputError(f"client: expected at least one feature matrix, got shape {tuple(features.shape)}")
    if features.dtype != torch.float32:
        raise InputError(f"client: expected float32 features, got {features.dtype}; convert with .float()")
    if not torch.isfinite(features).all():
        raise InputError("client: the features hold NaN or infinity; extract them again")


def _check_labels(labels: Tensor, loss: str, outputs: Tensor) -> None:
    """Refuse a label that the loss, or the model's outputs, have no place for."""
    if loss == "ranking":
        return
    if loss == "bce" and not ((labels == 0) | (labels == 1)).all():
        raise InputError(
            f"client: labels run from {labels.min()} to {labels.max()}, but the loss 'bce' takes 0 for "
            "normal and 1 for anomalous"
        )
    if loss == "cross_entropy" and (labels.min() < 0 or labels.max() >= outputs.shape[1]):
        classes = outputs.shape[1]
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
            f"the model draws random numbers in mode {mode!r} (F.dropout, or dropout within recurrent layers "
            "or attention?), which only layers nn.Dropout may; use these, set other dropout to 0, or "
            f"give {argument('mode', 'eval')}"
        )
