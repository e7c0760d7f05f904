"""Claim: the extractor decides how much leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vleak.results.statistics import mean_interval
from vleak.study.claim import Claim, Judgement
from vleak.study.keys import RunKey
from vleak.study.measures import Comparison, Measurements, Results, cosine_gain, leakage, mean
from vleak.study.runs import feature_rows, feature_runs
from vleak.study.settings import Study
from vleak.study.variance import variance_shares

FACTORS = ("extractor", "head", "loss")
Grid = Mapping[tuple[str, ...], Measurements]
"""Measurements by the levels of the factors."""


class Factors(Claim):
    """Share of variance that the extractor explains against those of loss and head."""

    key = "factors"
    name = "Of loss, head and extractor, the extractor decides how much leaks."

    def runs(self, study: Study) -> Sequence[RunKey]:
        """Return the full grid of extractors, heads and losses."""
        return feature_runs(study)

    def judge(self, study: Study, results: Results) -> Judgement:
        """Compare the shares of variance, clip by clip."""
        grid: Grid = {key.factors: leakage(results, key, cosine_gain) for key in feature_runs(study)}
        shares = _shares(grid)
        means = [mean([share[factor] for share in shares]) for factor in range(len(FACTORS))]
        listed = ", ".join(f"{name} {100 * value:.0f} %" for name, value in zip(FACTORS, means, strict=True))
        return Judgement(
            (_over(grid, shares, "loss"), _over(grid, shares, "head")),
            remarks=(
                f"Shares of the variance in the recovery of features: {listed}; the rest is interaction.",
            ),
            grid=feature_rows(study, results),
        )


def _shares(grid: Grid) -> list[tuple[float, ...]]:
    """Return the shares of all factors, for every clip that all runs scored."""
    clips = sorted(set.intersection(*(set(measurements) for measurements in grid.values())))
    return [
        variance_shares({levels: measurements[clip].value for levels, measurements in grid.items()})
        for clip in clips
    ]


def _over(grid: Grid, shares: Sequence[tuple[float, ...]], factor: str) -> Comparison:
    """Compare the share of the extractor with that of another factor."""
    extractor, other = FACTORS.index("extractor"), FACTORS.index(factor)
    effect = mean_interval([share[extractor] - share[other] for share in shares])
    cells = tuple(m.cell for measurements in grid.values() for m in measurements.values())
    return Comparison(f"extractor over {factor}", effect, "share of variance", cells)
