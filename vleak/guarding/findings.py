"""Findings about a model that a server sent: what was looked at, what was found, and when it is an alarm."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of one check of a model.

    Attributes:
        check: name of the check, a key of `CHECKS`.
        layer: tensor or module with the largest figure; empty where the check applies to none.
        figure: what was measured there; higher is more suspicious.
        threshold: largest figure that is no alarm.
        why: what the figure means, in a sentence.
    """

    check: str
    layer: str
    figure: float
    threshold: float
    why: str

    @property
    def alarm(self) -> bool:
        """Whether the figure is above the threshold, or no number at all."""
        return not self.figure <= self.threshold

    @property
    def paper(self) -> str:
        """Paper of the attack that the check is after."""
        return CHECKS[self.check].paper

    def __str__(self) -> str:
        """Return the finding in one line."""
        where = f" in {self.layer!r}" if self.layer else ""
        return f"{self.check}{where}: {self.why} ({self.figure:.3g}, at most {self.threshold:.3g})"


@dataclass(frozen=True)
class Check:
    """Description of a check.

    Attributes:
        figure: what its figure is, with its range.
        paper: paper of the attack that it is after.
        needs: what it looks at beside the weights: "", "clips", or "earlier" weights.
    """

    figure: str
    paper: str
    needs: str = ""


CHECKS: dict[str, Check] = {
    "parallel_rows": Check(
        "share of a layer's rows that are parallel to one of them, 0 to 1",
        "Robbing the Fed, arXiv 2110.13057",
    ),
    "passing_kernels": Check(
        "share of a convolution's kernels that hold a single entry, 0 to 1", "LOKI, arXiv 2303.12233"
    ),
    "class_trap": Check(
        "largest norm of a class's weights in the last layer over the median of the others, from 1",
        "Fishing for User Data, arXiv 2202.00580",
    ),
    "class_bias": Check(
        "largest distance of a class's bias in the last layer from their median, in logits",
        "Fishing for User Data, arXiv 2202.00580",
    ),
    "feature_trap": Check(
        "largest share of a class's squared weights in one feature, 0 to 1",
        "Fishing for User Data, arXiv 2202.00580",
    ),
    "round_change": Check(
        "largest relative change of a weight since the round before, from 0",
        "Model inconsistency, arXiv 2111.07380",
        "earlier",
    ),
    "lone_units": Check(
        "share of a linear layer's units that one clip alone moves, 0 to 1",
        "When the Curious Abandon Honesty, arXiv 2112.02918",
        "clips",
    ),
    "dominant_clip": Check(
        "D-SNR: norm of one clip's gradient over the sum of the others', in the layer where it is largest",
        "SEER, arXiv 2306.03013",
        "clips",
    ),
    "dominant_frame": Check(
        "the same over frames, of how far each moves the update", "after SEER, arXiv 2306.03013", "clips"
    ),
    "batch_norm": Check(
        "largest distance of the clips' mean from a channel's running mean, in running deviations",
        "none; statistics are weights that no client sees change",
        "clips",
    ),
}
"""Checks by name."""
