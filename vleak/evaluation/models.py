"""Models of a run: by name, as objects, or as factories."""

from __future__ import annotations

from torch import nn

from vleak.evaluation.objects import ModuleLike, build_module, module_name
from vleak.models import Extractor, build_head, build_model, wrap_extractor
from vleak.objects import unwrapped
from vleak.pipelines import extractor_for

__all__ = ["classifier_of", "extractor_of", "head_of"]


def classifier_of(model: ModuleLike, *, frames: int, size: int, classes: int, seed: int) -> nn.Module:
    """Classifier of clips, in eval mode on the CPU.

    Raises:
        InputError: as `vleak.models.build_model`.
    """
    if isinstance(model, str):
        return build_model(model, frames=frames, size=size, classes=classes, seed=seed)
    facts = {"frames": frames, "size": size, "classes": classes, "num_classes": classes}
    return build_module("model", model, facts, seed).eval()


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
