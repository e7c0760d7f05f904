"""Claims of the study: those of arXiv 2509.09742, and two questions that it leaves open."""

from __future__ import annotations

from vleak.study.claim import Claim
from vleak.study.claims.complexity import Complexity
from vleak.study.claims.compression import Compression
from vleak.study.claims.enhancement import Enhancement
from vleak.study.claims.extractors import Extractors
from vleak.study.claims.factors import Factors
from vleak.study.claims.references import References

__all__ = ["CLAIMS"]

CLAIMS: tuple[Claim, ...] = (
    Extractors(),
    Complexity(),
    Enhancement(),
    References(),
    Compression(),
    Factors(),
)
"""All claims, in the order of the page."""
