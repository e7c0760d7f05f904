"""The functions of PyTorch that are recorded as vleak's own operators while a step is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from vleak.descent.activation import ACTIVATIONS
from vleak.descent.convolution import CONVOLUTIONS
from vleak.descent.normalization import NORMS

__all__ = ["OwnOperators"]

_OWN: dict[Callable[..., Any], Callable[..., Any]] = {**CONVOLUTIONS, **NORMS, **ACTIVATIONS}


class OwnOperators(TorchFunctionMode):
    """Mode in which functions run as vleak's operators where PyTorch's second derivatives are long."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace a function where vleak's operators serve; leave every other function alone."""
        own = _OWN.get(func)
        result = None if own is None else own(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result
