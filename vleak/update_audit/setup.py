"""What an audit works with: the user's model, public clips, and the client that sends dummies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vleak.attacks import Knowledge, Observation
from vleak.data import load_clips
from vleak.errors import InputError, argument
from vleak.evaluation.objects import ModuleLike, make_module, module_name
from vleak.federated import Client, Defense, Update
from vleak.federated.stored import read_stored
from vleak.models import (
    Layout,
    Plain,
    adapt,
    check_classifier,
    check_second_derivative,
    is_built_in,
    load_checkpoint,
    make_model,
    plain_module,
)
from vleak.seeds import derive_seed, generator

__all__ = ["Mode", "Setup", "Shape", "check_counts", "check_shape", "clips_of", "model_of", "public_clips"]

Shape = tuple[int, int, int, int]
"""(C, T, H, W)."""

Mode = Literal["eval", "train"]

_MOST = 2**26  # numbers of a clip
_MOST_OF_ALL = 2**28  # of the clips behind an update, beside which stand several dummies


@dataclass(frozen=True)
class Setup:
    """Model, captured update and public clips.

    Attributes:
        model: with the weights that the client was sent, in eval mode.
        name: of the model.
        update: that was captured.
        shape: of a clip. classes: logits of the model.
        public: (M, C, T, H, W) in [0, 1]. groups: (M,) int64, equal for clips of one video; or None.
        public_name: where they come from.
        defense: that the client is said to use.
        seed: of everything that is drawn.
    """

    model: nn.Module
    name: str
    update: Update
    shape: Shape
    classes: int
    public: Tensor
    groups: Tensor | None
    public_name: str
    defense: Defense
    seed: int

    def client(self, defense: Defense | None = None, mode: Mode | None = None) -> Client:
        """Return a client of these facts; with the stated defense where none is given."""
        facts = self.update.facts
        defense = self.defense if defense is None else defense
        return Client(self.model, facts.loss, defense, mode=mode or facts.mode, local=facts.local)

    def observe(self, update: Update, client: Client, *, without: Tensor | None = None) -> Observation:
        """Return what the attacker sees of an update.

        Args:
            update: of the client.
            client: whose code the attacker knows.
            without: (K,) positions of public clips that he does not hold, because they were sent.
        """
        rows = torch.ones(len(self.public), dtype=torch.bool)
        if without is not None:
            rows[without] = False
            if self.groups is not None:
                rows &= ~torch.isin(self.groups, self.groups[without])
        knowledge = Knowledge(
            clip_shape=self.shape,
            batch_size=update.facts.batch_size,
            classes=self.classes,
            public_clips=self.public[rows],
            public_groups=None if self.groups is None else self.groups[rows],
            simulate=client.update,
        )
        return Observation(self.model, update, knowledge, client.channel(update))

    def sent(
        self,
        clips: Tensor,
        labels: Tensor,
        *parts: object,
        mode: Mode | None = None,
        defense: Defense | None = None,
    ) -> Update:
        """Return the update of clips (B, C, T, H, W), as far as it was captured; undefended unless said."""
        client = self.client(Defense() if defense is None else defense, mode)
        return self.as_captured(client.update(clips, labels, generator(self.seed, "audit", *parts)))

    def as_captured(self, update: Update) -> Update:
        """Return an update without the tensors that the captured one lacks."""
        kept = {name: update.tensors[name] for name in self.update.tensors}
        return replace(update, tensors=kept, partial=self.update.partial)


def check_shape(shape: object) -> Shape:
    """Return the shape of a clip.

    Raises:
        InputError: not four whole numbers from 1, or too many pixels.
    """
    values = tuple(shape) if isinstance(shape, tuple | list | torch.Size) else ()
    whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in values)
    if len(values) != 4 or not whole:
        raise InputError(
            f"{argument('input_shape', shape)}: expected four whole numbers from 1, C,T,H,W: channels, "
            "frames, "
            "height and width, such as 3,8,32,32"
        )
    c, t, h, w = values
    if c * t * h * w > _MOST:
        raise InputError(
            f"{argument('input_shape', shape)}: at most {_MOST} numbers a clip; give a smaller one"
        )
    return c, t, h, w


def check_counts(shape: Shape, batch_size: int, classes: int | None) -> None:
    """Refuse a batch that is none or that no memory holds, and a number of classes that is none.

    Raises:
        InputError: no clip or too many of this shape, or less than two classes.
    """
    most = _MOST_OF_ALL // math.prod(shape)
    given: dict[str, tuple[object, int]] = {"batch_size": (batch_size, 1)}
    if classes is not None:
        given["classes"] = (classes, 2)
    for name, (value, least) in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{argument(name, value)}: expected a whole number from {least}")
    if batch_size > most:
        raise InputError(
            f"{argument('batch_size', batch_size)}: at most {most} clips of this shape; give fewer"
        )


def model_of(
    model: ModuleLike,
    shape: Shape,
    *,
    classes: int | None,
    checkpoint: str | None,
    layout: Layout | None,
    seed: int,
) -> tuple[Plain, str, int]:
    """Return a model in eval mode on the CPU with notes, its name, and its number of logits.

    Args:
        model: a name, "package.module:factory", a module or a factory.
        shape: of a clip.
        classes: that a factory is told; None to leave the choice to it.
        checkpoint: file with the weights.
        layout: in which the model takes clips; None to find it out.
        seed: of weights that are drawn.

    Raises:
        InputError: it cannot be built, or does not take clips of this shape.
        CapabilityError: it has no second derivative, so that it cannot be attacked by gradient matching.
    """
    name = module_name("model", model)
    built_in = isinstance(model, str) and is_built_in(model)
    if built_in and (classes is None or shape[0] != 3 or shape[2] != shape[3]):
        raise InputError(
            f"model {name!r} of vleak's own takes 3 channels and square frames and needs its number of "
            f"`classes`; got shape {shape} and classes {classes}"
        )
    facts = {"frames": shape[1], "size": shape[2]} | ({} if classes is None else {"classes": classes})
    if isinstance(model, str):
        made = make_model(model, frames=shape[1], size=shape[2], classes=classes, seed=seed)
    else:
        made = make_module("model", model, facts | ({"num_classes": classes} if classes else {}), seed)
    module, notes = Plain(made, ()) if built_in else plain_module(made)
    if layout is not None or not built_in:
        module, found = adapt(
            module, shape, classes or 2, layout=layout, seed=derive_seed(seed, "lazy weights")
        )
        told = " logits for 2 classes"  # of no interest where nobody said how many there are
        notes += tuple(note for note in found if classes is not None or told not in note)
    if checkpoint is not None:
        notes += load_checkpoint(module, checkpoint)
    module.eval()
    probe = torch.full((1, *shape), 0.5)
    logits = check_classifier(module, probe, classes or 2)
    check_second_derivative(module, torch.rand(1, *shape, generator=generator(seed, "audit", "probe")))
    return Plain(module, notes), name, logits


def public_clips(
    source: str | Tensor, shape: Shape, count: int, seed: int
) -> tuple[Tensor, Tensor | None, str]:
    """Return public clips (M, *shape), their groups or None, and where they come from.

    Args:
        source: a data source as of `vleak.load_clips`, or clips (M, C, T, H, W) in [0, 1].
        shape: that they are brought to: frames are scaled, colour is averaged to grey for other channels.
        count: at most.
        seed: of what is drawn.

    Raises:
        InputError: the source cannot be read, or gives fewer than four clips.
    """
    if isinstance(source, Tensor):
        clips, groups, name = _checked("public", source, shape)[:count], None, "clips that were handed over"
    else:
        frames, size = max(2, shape[1]), max(8, shape[2], shape[3])
        data = load_clips(source, clips=1, frames=frames, size=size, public=count, seed=seed)
        clips, groups, name = fitted(data.public_clips, shape), data.public_groups, data.public_source
    if len(clips) < 4:
        raise InputError(f"public={source!s:.80}: it gives {len(clips)} public clips, expected at least 4")
    return clips, groups, name


def fitted(clips: Tensor, shape: Shape) -> Tensor:
    """Return clips (N, 3, T, S, S) as (N, *shape)."""
    c, t, h, w = shape
    clips = clips[:, :, :t]
    if clips.shape[1] != c:
        clips = clips.mean(1, keepdim=True).expand(-1, c, -1, -1, -1)
    if tuple(clips.shape[3:]) != (h, w):
        clips = F.interpolate(clips.contiguous(), (t, h, w), mode="trilinear", align_corners=False)
    return clips.clamp(0, 1).contiguous()


def clips_of(argument_name: str, source: str | Path | Tensor, shape: Shape) -> Tensor:
    """Return clips (N, *shape) of a file or of a tensor; of a file of tensors the one that it holds.

    Args:
        argument_name: for messages.
        source: clips (N, C, T, H, W) or (C, T, H, W) in [0, 1]; a safetensors, .npz or torch file of one such
            tensor; or a video or a folder of them, of which the windows are taken.
        shape: of a clip.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    if isinstance(source, Tensor):
        return _checked(argument_name, source, shape)
    path = Path(source)
    if path.suffix.lower() in (".safetensors", ".npz", ".pt", ".pth"):
        arrays = read_stored(path).arrays
        values = list(arrays.values()) if hasattr(arrays, "values") else list(arrays)
        if len(values) != 1:
            raise InputError(f"{argument_name}: {path} holds {len(values)} tensors, expected one, of clips")
        try:
            return _checked(argument_name, torch.as_tensor(values[0]), shape)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{argument_name}: {path} holds no tensor of clips; save one") from error
    data = load_clips(str(source), frames=max(2, shape[1]), size=max(8, shape[2], shape[3]), public=0)
    return fitted(data.clips, shape)


def _checked(argument_name: str, clips: Tensor, shape: Shape) -> Tensor:
    clips = clips[None] if clips.ndim == 4 else clips
    if clips.ndim != 5 or tuple(clips.shape[1:]) != shape or not len(clips):
        raise InputError(
            f"{argument_name}: expected clips of shape (clip, {', '.join(map(str, shape))}), got "
            f"{tuple(clips.shape)}; give the shape that the model takes"
        )
    clips = clips.detach().cpu().float()
    if not bool(torch.isfinite(clips).all()) or float(clips.min()) < 0 or float(clips.max()) > 1:
        raise InputError(f"{argument_name}: expected values in [0, 1]; scale 8-bit pixels by 1/255")
    return clips
