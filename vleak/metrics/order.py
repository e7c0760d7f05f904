"""Order of frames: fidelity in the original order, and after the best one-to-one matching of frames."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vleak.metrics.fidelity import PSNR_CAP_DB, pair, psnr


def order_scores(reconstruction: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the fidelity of a rebuilt clip in the original order of frames, and in the best order.

    A model that averages over frames has the same gradient for every order of them.

    Args:
        reconstruction: (C, T, H, W) in [0, 1], the rebuilt clip.
        truth: (C, T, H, W) in [0, 1], the private clip.

    Returns:
        ``psnr_db`` in the original order; ``matched_psnr_db`` after the one-to-one matching of frames with
        the largest sum; ``frames_in_place``, the share of frames that this matching leaves in place. Of
        equally good matchings the one that leaves most frames in place is used.

    Raises:
        InputError: shapes differ, are not 4-D, or a value is NaN or infinite.
    """
    a, b = pair("order_scores", reconstruction, truth)
    errors = np.square(b[:, :, None] - a[:, None]).mean((0, 3, 4))
    levels = np.minimum(PSNR_CAP_DB, -10 * np.log10(np.maximum(errors, 1e-30)))
    rows, columns = linear_sum_assignment(-levels - 1e-9 * np.eye(len(levels)))
    return {
        "psnr_db": psnr(reconstruction, truth),
        "matched_psnr_db": float(levels[rows, columns].mean()),
        "frames_in_place": float((rows == columns).mean()),
    }
