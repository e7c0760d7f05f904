"""Record of further ceilings of a cell, beside the certificate."""

from __future__ import annotations

from pydantic import Field

from vleak.results.base import Finite, Record

__all__ = ["CeilingRecord"]


class CeilingRecord(Record):
    """What the bits of a message and its noise leave to an attacker (`vleak.certificates.ceilings`).

    Attributes:
        bits: that the message tells of the clip at most: its length, or the capacity of its Gaussian noise.
        fano: share of clips that so many bits allow any attacker to identify.
        no_prior_psnr_db: expected PSNR that the noise leaves to an attacker without prior (arXiv 2402.12861);
            None without Gaussian noise or frames.
        information: trace of the Fisher information of the message about the clip, for a number of the clip;
            None where the client sends more than one gradient of one clip.
        unbiased_psnr_db: PSNR that it leaves to unbiased attackers (Cramér-Rao).
        prior_variance: of the public clips about their mean, the stated prior of van Trees' inequality.
    """

    bits: Finite = Field(ge=0)
    fano: Finite = Field(ge=0, le=1)
    no_prior_psnr_db: Finite | None = None
    information: Finite | None = Field(default=None, ge=0)
    unbiased_psnr_db: Finite | None = None
    prior_variance: Finite | None = Field(default=None, gt=0)
