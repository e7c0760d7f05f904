"""Suffixes of the files that are read, in lower case."""

from __future__ import annotations

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mj2", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg",
        ".ts", ".flv", ".wmv", ".h264", ".264",
    }
)  # fmt: skip
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
TABLE_SUFFIXES = frozenset({".npy", ".txt"})
OF_NAMES = "|".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES | TABLE_SUFFIXES))
"""All of them as alternatives of a regular expression, without dots."""
