"""Models of a run: by name, as objects, or as factories."""

from __future__ import annotations

from torch import nn

from vleak.evaluation.objects import ModuleLike, build_module, make_module, module_name
from vleak.models import (
    Extractor,
    Layout,
    Plain,
    adapt,
    build_head,
    is_built_in,
    load_checkpoint,
    make_model,
    plain_module,
    wrap_extractor,
)
from vleak.objects import unwrapped
from vleak.pipelines import extractor_for
from vleak.seeds import derive_seed

__all__ = ["classifier_of", "extractor_of", "head_of"]


def classifier_of(
    model: ModuleLike,
    *,
    frames: int,
    size: int,
    classes: int,
    seed: int,
    least: int | None = None,
    layout: Layout | None = None,
    checkpoint: str | None = None,
) -> Plain:
    """Classifier of clips (N, 3, T, H, W), in eval mode on the CPU, with notes on what was done to it.

    Args:
        model: a name, a module or a factory.
        frames, size, classes: of the data.
        seed: of the weights that are drawn.
        least: logits that a model from outside must have; None for one a class.
        layout: in which a model from outside takes clips; None to find it out.
        checkpoint: file with its weights.

    Raises:
        InputError: as `vleak.models.make_model`, `plain_module`, `adapt` and `load_checkpoint`.
    """
    facts = {"frames": frames, "size": size, "classes": classes}
    built_in = isinstance(model, str) and is_built_in(model)
    made = (
        make_model(model, **facts, seed=seed)
        if isinstance(model, str)
        else make_module("model", model, {**facts, "num_classes": classes}, seed)
    )
    module, notes = Plain(made, ()) if built_in else plain_module(made)
    if layout is not None or not built_in:
        lazy_seed = derive_seed(seed, "lazy weights")
        module, found = adapt(
            module, (3, frames, size, size), least or classes, layout=layout, seed=lazy_seed
        )
        notes += found
    if checkpoint is not None:
        notes += load_checkpoint(module, checkpoint, new_head=built_in)
    return Plain(module.eval(), notes)


def head_of(head: ModuleLike, *, segments: int, features: int, outputs: int | None, seed: int) -> nn.Module:
    """Head on features, in eval mode on the CPU.

    Raises:
        InputError: as `vleak.models.build_head`.
    """
    if isinstance(head, str):
        return build_head(head, segments=segments, features=features, outputs=outputs, seed=seed)
    facts = {"segments": segments, "features": features, "outputs": outputs}
    return build_module("head", head, facts, seed).eval()


def extractor_of(
    extractor: ModuleLike, *, frames: int, size: int, seed: int
) -> tuple[Extractor, float | None]:
    """Frozen extractor on the CPU, and its accuracy on held-out embedded clips where it was trained here.

    Raises:
        InputError: as `vleak.models.build_extractor`.
    """
    if isinstance(extractor, str):
        return extractor_for(extractor, frames=frames, size=size)
    net = build_module("extractor", extractor, {"size": size, "frames": frames}, seed)
    if isinstance(unwrapped(extractor), Extractor) and isinstance(net, Extractor):
        return net, None
    return wrap_extractor(module_name("extractor", extractor), net, size=size, frames=frames), None
