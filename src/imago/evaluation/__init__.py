"""Sample quality (feature extractors, distances, what a run is given to measure with), and likelihood."""

from imago.evaluation.ais import measure_by_ais
from imago.evaluation.cas import measure_cas
from imago.evaluation.choices import Auto, Classifier, Clip, DinoV2, EfficientNet, ExtractorChoice, Inception
from imago.evaluation.extractors import (
    ClassifierExtractor,
    ClipExtractor,
    DinoV2Extractor,
    EfficientNetExtractor,
    FeatureExtractor,
    InceptionExtractor,
)
from imago.evaluation.frechet import ExtrapolatedFrechetDistance, FrechetDistance, frechet_distance
from imago.evaluation.inception_score import InceptionScore
from imago.evaluation.kernel import KernelDistance, squared_mmd
from imago.evaluation.likelihood import NegativeLogLikelihood, measure_likelihood
from imago.evaluation.manifold import PRDC
from imago.evaluation.neighbours import Authenticity
from imago.evaluation.quality import SampleQuality
from imago.evaluation.reference import ReferenceStatistics
from imago.evaluation.sliced import MongeDistance
from imago.measures import Measurement, Protocol

__all__ = [
    "PRDC",
    "Authenticity",
    "Auto",
    "Classifier",
    "ClassifierExtractor",
    "Clip",
    "ClipExtractor",
    "DinoV2",
    "DinoV2Extractor",
    "EfficientNet",
    "EfficientNetExtractor",
    "ExtractorChoice",
    "ExtrapolatedFrechetDistance",
    "FeatureExtractor",
    "FrechetDistance",
    "Inception",
    "InceptionExtractor",
    "InceptionScore",
    "KernelDistance",
    "Measurement",
    "MongeDistance",
    "NegativeLogLikelihood",
    "Protocol",
    "ReferenceStatistics",
    "SampleQuality",
    "frechet_distance",
    "measure_by_ais",
    "measure_cas",
    "measure_likelihood",
    "squared_mmd",
]
