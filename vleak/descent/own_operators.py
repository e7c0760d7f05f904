"""The functions of PyTorch that are recorded in another form while a step is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vleak.descent import activation, convolution, normalization, recurrent

__all__ = ["OwnOperators"]

_Functions = dict[Callable[..., Any], Callable[..., Any]]

#: Our kernels for them are for the CPU only.
_ON_CPU: _Functions = {
    **convolution.REPLACEMENTS,
    **normalization.REPLACEMENTS,
    **activation.REPLACEMENTS,
}


class OwnOperators(TorchFunctionMode):
    """Mode in which functions are recorded in another form: PyTorch's second derivatives are long or none.

    Recurrent layers are recorded as plain operators on every device, all others as vleak's own on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Choose the functions by the device on which the graph will run."""
        super().__init__()
        self._own: _Functions = recurrent.REPLACEMENTS | (_ON_CPU if device.type == "cpu" else {})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace a function where the other form serves; leave every other function alone."""
        own = self._own.get(func)
        result = None if own is None else own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result
