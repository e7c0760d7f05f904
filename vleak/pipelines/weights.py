"""Weights that are made on the user's machine: what they are trained on, and the command's way to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vleak.cache import Recipe
from vleak.data import ClipRequest, ClipSet, load_clips
from vleak.enhance import cached_network
from vleak.errors import InputError, argument
from vleak.models import Extractor, build_extractor, pretrained
from vleak.seeds import tensor_digest

__all__ = ["TRAINABLE", "extractor_for", "network_for", "train_weights"]

TRAINABLE = ("c3d_small", "frame_cnn", "network")
"""What `train_weights` makes: extractors, and the network that enhances."""

_SEED = 9001
"""Of the embedded clips that extractors are trained on; no evaluation draws its clips from it by default."""
_CLIPS, _BYTES = 600, 2**31  # fewer where so many would take more memory than this


def extractor_for(
    name: str, *, frames: int, size: int, again: bool = False
) -> tuple[Extractor, float | None]:
    """Return a frozen extractor: a built-in one trained on embedded clips, once; any other as it comes.

    Args:
        name: as `vleak.models.build_extractor` takes it.
        frames, size: of the clips.
        again: train even if the cache has the weights.

    Returns:
        the extractor, and its accuracy on embedded clips that were held out; None for one that was not
        trained here.

    Raises:
        InputError: as `vleak.models.build_extractor`, or frames or size out of range.
    """
    if name.partition(":")[0] not in TRAINABLE[:2]:
        return build_extractor(name, frames=frames, size=size, seed=_SEED), None

    ClipRequest(frames=frames, size=size)  # refuses what no clips have
    count = max(60, min(_CLIPS, _BYTES // (12 * frames * size**2)))

    def clips() -> tuple[Tensor, Tensor]:
        data = load_clips("synthetic", clips=count, frames=frames, size=size, seed=_SEED, public=0)
        return data.clips, data.labels

    recipe: Recipe = {"data": "synthetic", "data_seed": _SEED, "clips": count}
    return pretrained(name, frames=frames, size=size, seed=_SEED, recipe=recipe, clips=clips, again=again)


def network_for(data: ClipSet, *, again: bool = False) -> dict[str, Tensor]:
    """Return the network that enhances, trained on the public clips of a data set, once.

    Args:
        data: with ``public_fine``.
        again: train even if the cache has the weights.

    Raises:
        InputError: there are no public clips.
    """
    fine = data.public_fine
    if fine is None or not len(fine):
        raise InputError(
            "enhancement by 'network' is trained on public clips and the data has none left; give more "
            f"files, {argument('public_from', 'same-file')} or {argument('enhance', 'classical')}"
        )
    return cached_network({"clips": tensor_digest(fine)}, lambda: fine, again=again)


def train_weights(name: str, *, again: bool = False, **data: Any) -> str:
    """Train what a name stands for and keep it in the user's cache; return what to tell of it.

    Args:
        name: one of ``TRAINABLE``.
        again: train even if the cache has it.
        data: source, clips, frames, size, stride and seed, as an evaluation has them: extractors are trained
            for a size, the network on the public clips of its data.

    Raises:
        InputError: the clips cannot be had.
    """
    if name == "network":
        network_for(load_clips(fine=True, **data), again=again)
        return f"network: trained on the public clips of {data['source']}"
    _, accuracy = extractor_for(name, frames=data["frames"], size=data["size"], again=again)
    return f"{name}: tells {accuracy:.0%} of held-out embedded clips apart (chance {1 / 6:.0%})"
