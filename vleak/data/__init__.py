"""Clips and features: synthetic motion, windows cut from videos or images, feature files."""

from vleak.data.clipset import DEFAULT_CLIPS, ClipSet, FeatureSet
from vleak.data.features import load_features
from vleak.data.load import load_clips, load_data, recognise
from vleak.data.plugins import SOURCES, check_clip_set
from vleak.data.request import ClipRequest
from vleak.data.synthetic import MOTIONS, synthetic_clip
from vleak.data.tensors import clip_set, first_of

__all__ = [
    "DEFAULT_CLIPS",
    "MOTIONS",
    "SOURCES",
    "ClipRequest",
    "ClipSet",
    "FeatureSet",
    "check_clip_set",
    "clip_set",
    "first_of",
    "load_clips",
    "load_data",
    "load_features",
    "recognise",
    "synthetic_clip",
]
