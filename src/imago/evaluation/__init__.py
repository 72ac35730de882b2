"""Sample quality (feature extractors, distances, the evaluator that a run is given), and likelihood."""

from imago.evaluation.choices import Auto, Classifier, Clip, DinoV2, ExtractorChoice, Inception
from imago.evaluation.extractors import (
    ClassifierExtractor,
    ClipExtractor,
    DinoV2Extractor,
    FeatureExtractor,
    InceptionExtractor,
)
from imago.evaluation.frechet import Moments, frechet_distance
from imago.evaluation.inception_score import inception_score
from imago.evaluation.kernel import kernel_distance, squared_mmd
from imago.evaluation.likelihood import measure_likelihood
from imago.evaluation.manifold import ManifoldMeasures, manifold_measures
from imago.evaluation.quality import Evaluator, NoMetrics, SampleQuality
from imago.evaluation.reference import ReferenceStatistics
from imago.measures import Measurement, Protocol

__all__ = [
    "Auto",
    "Classifier",
    "ClassifierExtractor",
    "Clip",
    "ClipExtractor",
    "DinoV2",
    "DinoV2Extractor",
    "Evaluator",
    "ExtractorChoice",
    "FeatureExtractor",
    "Inception",
    "InceptionExtractor",
    "ManifoldMeasures",
    "Measurement",
    "Moments",
    "NoMetrics",
    "Protocol",
    "ReferenceStatistics",
    "SampleQuality",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "manifold_measures",
    "measure_likelihood",
    "squared_mmd",
]
