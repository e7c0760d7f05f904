"""Clips and features: synthetic motion, windows cut from videos or images, feature files."""

from vleak.data.alike import equal_to, noted
from vleak.data.clipset import DEFAULT_CLIPS, PUBLIC_FROM, ClipSet, FeatureSet, PublicFrom
from vleak.data.features import load_features
from vleak.data.load import load_clips, load_data, recognise
from vleak.data.plugins import SOURCES, check_clip_set
from vleak.data.request import ClipRequest
from vleak.data.synthetic import MOTIONS, synthetic_clip
from vleak.data.tensors import clip_set, first_of, redrawn

__all__ = [
    "DEFAULT_CLIPS",
    "MOTIONS",
    "PUBLIC_FROM",
    "SOURCES",
    "ClipRequest",
    "ClipSet",
    "FeatureSet",
    "PublicFrom",
    "check_clip_set",
    "clip_set",
    "equal_to",
    "first_of",
    "load_clips",
    "load_data",
    "load_features",
    "noted",
    "recognise",
    "redrawn",
    "synthetic_clip",
]
