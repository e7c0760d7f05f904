"""Posterior of a clip's tubelets, where linear equations hold for what a transformer makes of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vleak.attacks.analytic.token_layer import TokenLayer
from vleak.attacks.expectation import prior_answer
from vleak.attacks.knowledge import Knowledge
from vleak.attacks.matching.spectrum import SpectrumModel

__all__ = ["TokenPosterior"]

_LEAST_SHARE = 1e-4
"""Variance that every pattern over tokens has at least, in units of the mean over patterns."""
_SPREAD = 0.5
"""How far the deviation within a token strays from that of the expected clip's, relative to it."""


class TokenPosterior:
    """Gaussian prior of tubelets, and the equations that the gradients of two layers give.

    The gradient by the embedding is a sum of d_i x_i', so that every tubelet x_i is in its row space, of the
    basis R: x_i = R' z_i. The gradient by what reads the tokens y_i is a sum of e_i y_i', so that no y_i has
    a part outside its row space. With P the projector on the outside, gain G, centring C and the unknown
    deviation s_i of a token

        P (G C (W R' z_i + offset_i) + shift s_i) = 0,

    linear in z_i and s_i, and different for each place, as offsets are.
    """

    def __init__(self, layer: TokenLayer, knowledge: Knowledge) -> None:
        """Set up the equations and the prior.

        Args:
            layer: of the model, with its gradients; fewer `rows` than numbers of a token.
            knowledge: its public clips tell the prior; fewer than two leave the power law of images.
        """
        self._layer, self._expected = layer, prior_answer(knowledge)[0].double()
        means = layer.cut(self._expected[None])[0]
        clips = knowledge.public_clips
        public = None if clips is None or len(clips) < 2 else layer.cut(clips.double())
        prior, self._places = _prior(public, means.shape, knowledge.classes)
        colours = layer.colour.view(2, 1, -1, 1, 1, 1)

        def whitened(tubelets: Tensor) -> Tensor:
            """Return tubelets, as the model has them and without the mean, in units of the prior."""
            return prior(tubelets.view(-1, *means.shape[1:]) * colours[1]).flatten(1)

        expected = ((means - colours[0]) / colours[1]).flatten(1)
        self._basis = _row_space(layer.tubelets_gradient, len(means), expected.shape[1])
        basis = whitened(self._basis)
        covariance = torch.linalg.inv(basis @ basis.T)
        tokens = expected @ layer.weight.T + layer.offset
        deviation = tokens.std(1, correction=0).mean()
        self._mean = torch.cat([covariance @ basis @ whitened(expected).T, deviation.expand(1, len(means))])
        self._covariance = nn.functional.pad(covariance, (0, 1, 0, 1))
        self._covariance[-1, -1] = (_SPREAD * deviation).square()
        self._equations(layer)

    def _equations(self, layer: TokenLayer) -> None:
        """Bring the equations to a form in which the prior's variances are diagonal."""
        outside = torch.linalg.svd(layer.attention_gradient, full_matrices=True)[2][layer.rows :]
        centred = outside * layer.gain
        centred = centred - centred.mean(1, keepdim=True)
        matrix = torch.cat([centred @ layer.weight @ self._basis.T, (outside @ layer.shift)[:, None]], 1)
        gap = -centred @ layer.offset.T - matrix @ self._mean
        along, axes = torch.linalg.eigh(matrix @ self._covariance @ matrix.T)
        over, patterns = torch.linalg.eigh(self._places)
        self._variances = along.clamp(min=0)[:, None] * over.clamp(min=_LEAST_SHARE)
        self._gap = axes.T @ gap @ patterns
        self._back = self._covariance @ matrix.T @ axes, over.clamp(min=_LEAST_SHARE), patterns
        #: Deviation of one side of an equation under the prior.
        self.unit = float(along.mean().clamp(min=1e-300).sqrt())

    def evidence(self, noise: float) -> float:
        """Return the log-likelihood of the equations, up to a constant, if they hold but for a deviation.

        Args:
            noise: above 0, in the unit of the tokens.
        """
        variances = self._variances + noise**2
        return -0.5 * float((self._gap.square() / variances + variances.log()).sum())

    def clip(self, noise: float) -> Tensor:
        """Return the posterior mean (C, T, H, W), in [0, 1], of equations that hold but for such a deviation.

        Args:
            noise: above 0, in the unit of the tokens.
        """
        back, over, patterns = self._back
        solved = self._mean + back @ (self._gap / (self._variances + noise**2) * over) @ patterns.T
        tubelets = (solved[:-1].T @ self._basis).view(-1, self._layer.colour.shape[1], *self._layer.tubelet)
        mean, deviation = self._layer.colour.view(2, 1, -1, 1, 1, 1)
        return self._layer.joined(tubelets * deviation + mean, self._expected).clamp(0, 1).float()


def _row_space(gradient: Tensor | None, rows: int, width: int) -> Tensor:
    """Return an orthonormal basis, a row each, of where tubelets are: all of space without a gradient."""
    if gradient is None or rows >= min(gradient.shape):
        return torch.eye(width, dtype=torch.float64)
    space: Tensor = torch.linalg.svd(gradient, full_matrices=False)[2][:rows]
    return space


def _prior(
    public: Tensor | None, shape: torch.Size, classes: int
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the map of deviations to units of the prior, and the correlation (n, n) of places.

    Args:
        public: (M, n, C, t, h, w) public tubelets, or None.
        shape: (n, C, t, h, w).
        classes: of the model.
    """
    deviations = None if public is None else (public - public.mean(0)).flatten(0, 1)
    known = Knowledge(
        clip_shape=tuple(shape[1:]), batch_size=1, classes=classes,
        public_clips=None if deviations is None else deviations.float(),
    )  # fmt: skip
    spectrum = SpectrumModel(nn.Identity(), known).double()
    spectrum.mean.zero_()
    if public is None or deviations is None:
        return spectrum.decompose, torch.eye(shape[0], dtype=torch.float64)
    rows = spectrum.decompose(deviations).view(len(public), shape[0], -1)
    together = torch.einsum("mid,mjd->ij", rows, rows)
    return spectrum.decompose, together / together.diagonal().mean()
