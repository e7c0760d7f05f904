"""Clips: synthetic motion, and windows cut from video files."""

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet
from vleak.data.load import load_clips
from vleak.data.synthetic import MOTIONS, synthetic_clip

__all__ = ["DEFAULT_CLIPS", "MOTIONS", "ClipSet", "load_clips", "synthetic_clip"]
