"""Gradient inversion loop of breaching, the most complete package for gradient inversion, on the same work.

breaching is no dependency of vleak, and its own dependencies would replace the installed PyTorch. Install it
without them:

    pip install --no-deps breaching torchvision==0.28.0    # the torchvision of your torch: 0.28.0 for 2.13
    pip install '.[breaching]'                             # what breaching imports: hydra-core, six

Two adaptations for clips are made here, none of them in breaching's loop: a torchvision whose native code was
built for another torch lacks two operators that its Python part requires (declared here, never called), and
breaching's total variation takes images, so frames are folded into the batch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import threading
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MISSING = ("nms", "qnms")
_ONE_AT_A_TIME = threading.Lock()  # hydra reads one configuration a process at a time
_KEPT: list[torch.library.Library] = []  # a declaration lives as long as its library object


def load() -> ModuleType | None:
    """Return the breaching package; None if it is not installed."""
    if importlib.util.find_spec("breaching") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it uses torch.jit.script
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_missing()
        return importlib.import_module("breaching")


def _declare_missing() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


class ClipVariation(nn.Module):
    """Total variation of breaching on every frame, plus the mean difference of successive frames."""

    def __init__(self, setup: dict[str, Any], spatial: float, temporal: float) -> None:
        super().__init__()
        regularizers = importlib.import_module("breaching.attacks.auxiliaries.regularizers")
        self.frames = regularizers.TotalVariation(setup, scale=spatial)
        self.temporal = temporal

    def initialize(self, *_: object) -> None:
        """Do nothing; breaching calls this before every trial."""

    def forward(self, clips: Tensor) -> Tensor:
        value: Tensor = self.frames(clips.transpose(1, 2).flatten(0, 1))
        return value + self.temporal * clips.diff(dim=2).abs().mean() if self.temporal else value


class FrameVariation(nn.Module):
    """Total variation of breaching, frames folded into the batch."""

    def __init__(self, of_images: nn.Module) -> None:
        super().__init__()
        self.of_images = of_images

    def initialize(self, *_: object) -> None:
        """Do nothing; breaching calls this before every trial."""

    def forward(self, clips: Tensor) -> Tensor:
        value: Tensor = self.of_images(clips.transpose(1, 2).flatten(0, 1))
        return value


def _of_frames(regularizer: nn.Module) -> nn.Module:
    return FrameVariation(regularizer) if type(regularizer).__name__ == "TotalVariation" else regularizer


def clip_variation(clips: Tensor, spatial: float, temporal: float) -> float:
    """Return breaching's total variation: zeros beyond the border, 1e-8 on a difference, mean over pixels."""
    padded = F.pad(clips, (0, 1, 0, 1))
    right = (padded[..., :-1, 1:] - clips).abs() + 1e-8
    below = (padded[..., 1:, :-1] - clips).abs() + 1e-8
    value = spatial * float((right + below).mean())
    return value + temporal * float(clips.diff(dim=2).abs().mean()) if temporal else value


class BreachingLoop:
    """Attack of breaching, Inverting Gradients, on one update, run for some iterations at a time."""

    def __init__(
        self,
        model: nn.Module,
        labels: Tensor,
        target: list[Tensor],
        start: Tensor,
        spatial: float | None = None,
        temporal: float = 0.0,
        *,
        config: str = "invertinggradients",
    ) -> None:
        """Prepare the attack with settings that breaching publishes.

        Args:
            model: in eval mode; copied.
            labels: (B,) int64, granted to the attack.
            target: the gradient, in the order of the parameters.
            start: (B, C, T, H, W), or rows of features in any shape.
            spatial: weight of total variation within frames, in the place of all published regularisers; None
                for these.
            temporal: weight of that between frames, which breaching does not have; unused where these run.
            config: name of the published settings.
        """
        self.x, self.history = start, list[float]()
        self.attacker = _attacker(model, config)
        if spatial is None:
            self.attacker.regularizers = [_of_frames(each) for each in self.attacker.regularizers]
        else:
            own = [ClipVariation(self.attacker.setup, spatial, temporal)] if spatial or temporal else []
            self.attacker.regularizers = own
        metadata = {"num_data_points": len(start), "labels": labels, "local_hyperparams": None}
        self._shared = [{"gradients": target, "buffers": None, "metadata": metadata}]
        self._payload = {
            "parameters": list(model.parameters()),
            "buffers": list(model.buffers()),
            "metadata": SimpleNamespace(shape=tuple(start.shape[1:]), modality="vision"),
        }
        self._models, self._labels, _ = self.attacker.prepare_attack([self._payload], self._shared)

    def run(self, iterations: int) -> None:
        """Continue breaching's loop, at a constant rate and without its final scoring."""
        self.attacker.cfg.optim.max_iterations = iterations
        self.attacker.cfg.optim.step_size_decay = None
        stats: dict[str, list[float]] = {"Trial_0_Val": []}
        self.x = self.attacker._run_trial(self._models, self._shared, self._labels, stats, 0, self.x)
        self.history += stats["Trial_0_Val"]

    def reconstruct(self, iterations: int, watch: Callable[[int, Tensor], None]) -> Tensor:
        """Run the complete attack, as its users do, from the start of this loop.

        Args:
            iterations: length of its schedule.
            watch: called before every iteration with the number of iterations done and the candidate.

        Returns:
            the answer of breaching, shaped like the start.
        """
        self.attacker.cfg.optim.max_iterations = iterations
        compute = self.attacker._compute_objective

        def watched(candidate: Tensor, *given: Any) -> Any:
            watch(given[-1], candidate.detach())
            return compute(candidate, *given)

        self.attacker._compute_objective = watched
        answer, _ = self.attacker.reconstruct([self._payload], self._shared, {}, initial_data=self.x)
        rebuilt: Tensor = answer["data"]
        return rebuilt


def _attacker(model: nn.Module, name: str) -> Any:
    breaching = importlib.import_module("breaching")
    with _ONE_AT_A_TIME, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hydra warns about its own next version
        config = breaching.get_attack_config(name)
    return breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), config)
