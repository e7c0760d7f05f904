"""Pipelines: clients, observations and judgements of raw frames and of features."""

from vleak.pipelines.bags import anomalous_classes, labels_of
from vleak.pipelines.base import Pipeline
from vleak.pipelines.case import Answer, Case, ClientSettings, Judgement
from vleak.pipelines.conditions import Conditions, Progress, Samples, Stop
from vleak.pipelines.data import Data, data_record, private_clips
from vleak.pipelines.feature import FeaturePipeline
from vleak.pipelines.pictures import ClipPictures, NoPictures, Pictures
from vleak.pipelines.raw import RawPipeline
from vleak.pipelines.sources import ExtractedFeatures, FeatureFiles, FeatureSource, extract
from vleak.pipelines.weights import TRAINABLE, extractor_for, network_for, train_weights

__all__ = [
    "TRAINABLE",
    "Answer",
    "Case",
    "ClientSettings",
    "ClipPictures",
    "Conditions",
    "Data",
    "ExtractedFeatures",
    "FeatureFiles",
    "FeaturePipeline",
    "FeatureSource",
    "Judgement",
    "NoPictures",
    "Pictures",
    "Pipeline",
    "Progress",
    "RawPipeline",
    "Samples",
    "Stop",
    "anomalous_classes",
    "data_record",
    "extract",
    "extractor_for",
    "labels_of",
    "network_for",
    "private_clips",
    "train_weights",
]
