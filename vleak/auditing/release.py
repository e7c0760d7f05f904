"""Releases of given per-clip gradients: what a defense sends of them, thousands of times."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vleak.federated import Defense, steps
from vleak.seeds import generator

__all__ = ["Release"]

# Float32 runs of one release agree to 2e-6 of the message's norm.
_TOLERANCE = 3e-5


class Release:
    """Mechanism of a defense on fixed per-clip gradients, some of which may be replaced by zero.

    The defense's own steps run on a linear model whose per-clip gradients are the given ones, so that the
    model that they come from is not run again. Where `Defense.combine` agrees with `Defense.aggregate` on it,
    the former stands for the latter.
    """

    def __init__(self, defense: Defense, samples: Mapping[str, Tensor]) -> None:
        """Take the gradients, and find out whether the fast way is the same.

        Args:
            defense: of the client; its `prepare_clips` is not run.
            samples: (N, *parameter shape) float32 by name, on the CPU.

        Raises:
            CapabilityError: the defense refused, or broke its contract.
        """
        self._defense, self._samples = defense, dict(samples)
        self._kept: dict[tuple[bool, ...], _Kept] = {}
        self._model = _Replay(self._samples)
        self.rows = len(next(iter(self._samples.values())))
        self.combines = False
        self.combines = self._combine_agrees()

    def send(self, present: Tensor, numbers: torch.Generator) -> Tensor:
        """Return one message, all its tensors in one axis.

        Args:
            present: (N,) bool; of the clips where it is False the gradient is zero.
            numbers: CPU generator of this message alone.

        Returns:
            (entries,) float32.

        Raises:
            CapabilityError: the defense broke its contract.
        """
        gradient = self._combined(present, numbers) if self.combines else self._aggregated(present, numbers)
        message = steps.transmit(self._defense, gradient, numbers)
        return torch.cat([tensor.flatten() for tensor in message.tensors.values()])

    def _combined(self, present: Tensor, numbers: torch.Generator) -> dict[str, Tensor]:
        key = tuple(present.tolist())
        if key not in self._kept or self._kept[key].changed:
            self._kept[key] = _Kept(self._samples, present)
        return self._defense.combine(dict(self._kept[key].samples), numbers)

    def _aggregated(self, present: Tensor, numbers: torch.Generator) -> dict[str, Tensor]:
        codes, labels = torch.diag(present.float()), torch.zeros(self.rows, dtype=torch.int64)
        return steps.aggregate(self._defense, self._model, _mean, codes, labels, numbers)

    def _combine_agrees(self) -> bool:
        """Return whether both ways make the same of all clips, of every second one, and of none."""
        every = torch.ones(self.rows, dtype=torch.bool)
        halves = torch.arange(self.rows) % 2 == 0
        for number, present in enumerate((every, halves, ~halves, ~every)):
            slow = self._aggregated(present, generator("combine", number))
            fast = self._combined(present, generator("combine", number))
            if fast.keys() != slow.keys() or any(fast[name].shape != slow[name].shape for name in slow):
                return False
            if not close(_flat(fast), _flat(slow)):
                return False
        return True


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether two messages differ by no more than rounding."""
    return bool((first - second).norm() <= _TOLERANCE * second.norm())


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _mean(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.mean()


class _Kept:
    """Gradients of the clips that are present, zero for the others: made once for thousands of messages."""

    def __init__(self, samples: Mapping[str, Tensor], present: Tensor) -> None:
        self.samples = {name: s * present.view(-1, *[1] * (s.dim() - 1)) for name, s in samples.items()}
        self._versions = self._counts()

    @property
    def changed(self) -> bool:
        """Whether a defense wrote into them."""
        return self._counts() != self._versions

    def _counts(self) -> list[int]:
        return [sample._version for sample in self.samples.values()]


class _Replay(nn.Module):
    """Linear model in whose mean output row i of the identity has the i-th of the given gradients.

    Its parameters have the names, the shapes and the order of those that the gradients belong to.
    """

    def __init__(self, samples: Mapping[str, Tensor]) -> None:
        super().__init__()
        # No buffers: these are copied for every gradient.
        self._rows = [(name.split("."), sample.reshape(len(sample), -1)) for name, sample in samples.items()]
        for (path, _), sample in zip(self._rows, samples.values(), strict=True):
            module: nn.Module = self
            for part in path[:-1]:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(path[-1], nn.Parameter(torch.zeros(sample.shape[1:])))

    def forward(self, codes: Tensor) -> Tensor:
        total = codes.new_zeros(len(codes))
        for path, rows in self._rows:
            weight: nn.Module | Tensor = self
            for part in path:
                weight = getattr(weight, part)
            assert isinstance(weight, Tensor)
            total = total + codes @ (rows @ weight.flatten())
        return total
