"""Metrics: the Fréchet distance against torchmetrics 1.9, everything else against torch-fidelity 0.4.

The distance is taken from means and covariances in float64, at Inception's 2,048 features, as both libraries do after
the last image: torchmetrics' from the eigenvalues of the unsymmetric product, ours from those of a symmetric one. The
features are rectified random mixtures, as behind the last layer of a network: 10,000 samples, and 1,000 (fewer than
features: a singular covariance), against 10,000. How long torchmetrics takes depends on the spectrum; a third pair of
clouds, normal ones that a random matrix mixes, is among its slowest. Before anything is timed our distance must equal
the definition, computed from the features themselves, and theirs is compared with it.

The metrics as their users call them, update and compute, on the same vectors in float64: batches added to a Fréchet
distance, kernel distance, precision and recall, Inception score. Their numbers must be equal first.

Inception's features: torch-fidelity's module and ours, with the same random weights in the layout of its file, 32x32x3
images (both sides resize them to 299x299), batch 16. They must be equal first.

    make bench BENCHMARKS=benchmarks/metrics.py
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from imago.evaluation import (
    PRDC,
    FrechetDistance,
    InceptionExtractor,
    InceptionScore,
    KernelDistance,
    frechet_distance,
)
from imago.evaluation.feature_metric import FeatureMetric
from side_by_side import Row, alternate, report

FEATURES, REFERENCE, BATCH = 2048, 10_000, 16
LIBRARIES = ThreadpoolController()  # SciPy's BLAS has threads of its own, which follow no setting of torch


def rectified(n: int, seed: int) -> Tensor:
    """Feature vectors, float64 (n, 2048): two random layers over 300 causes of falling size."""
    first, last = (torch.randn(k, FEATURES, generator=torch.Generator().manual_seed(k)) for k in (300, FEATURES))
    causes = torch.randn(n, 300, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 301) ** -0.5
    return ((causes @ first).relu() @ last / FEATURES**0.5).relu().double()


def mixed(n: int, seed: int) -> Tensor:
    """Feature vectors, float64 (n, 2048), of causes whose sizes fall from 1 to 0.001."""
    matrix = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(0))
    sizes = torch.logspace(0, -3, FEATURES)
    return (torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed)) * sizes @ matrix).double()


def exact(x: Tensor, y: Tensor) -> float:
    """The definition, Tr (C₁C₂)^½ being the sum of the singular values of X Yᵀ: no square root of rounding errors."""
    spreads = [torch.linalg.qr((part - part.mean(0)) / (len(part) - 1) ** 0.5, mode="r").R for part in (x, y)]
    common = torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + sum(s.square().sum() for s in spreads) - 2 * common)


class Given(nn.Module):
    """Feature vectors as they are, for metrics that ask for a network."""

    num_features = FEATURES

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


def distances(cloud: Callable[[int, int], Tensor], samples: int, *, rounds: int = 5) -> Row:
    x, y = cloud(samples, 1), 1.1 * cloud(REFERENCE, 2) + 0.01
    given = x.mean(0), x.T.cov(), y.mean(0), y.T.cov()

    def ours() -> float:
        with LIBRARIES.limit(limits=torch.get_num_threads(), user_api="blas"):
            return frechet_distance(*given)

    truth = exact(x, y)
    here, there = (abs(found - truth) / truth for found in (ours(), float(_compute_fid(*given))))
    print(
        f"{cloud.__name__}, {samples} samples: distance {truth:.6g}; errors {here:.1e}, theirs {there:.1e}",
        flush=True,
    )
    assert here < 1e-6
    timed = alternate({"ours": ours, "torchmetrics": partial(_compute_fid, *given)}, steps=1, rounds=rounds)
    return Row(
        job=f"Fréchet distance, {FEATURES:,} {cloud.__name__} features, {samples:,} samples",
        unit="distances/s",
        ours=1 / timed["ours"].seconds,
        our_threads=timed["ours"].threads,
        other="torchmetrics",
        others=1 / timed["torchmetrics"].seconds,
        their_threads=timed["torchmetrics"].threads,
        target=10,
    )


def random_weights(path: Path) -> None:
    """A file in torch-fidelity's layout, of weights that carry differences between images to the last layer."""
    with (
        patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda url, progress: {}),
        patch.object(nn.Module, "load_state_dict", lambda self, state: None),
    ):
        network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    torch.save(network.state_dict(), path)


def streams() -> Row:
    """A batch of 128 vectors added to what there is."""
    batch = rectified(128, 1).float()
    ours, theirs = FrechetDistance(num_features=FEATURES), FrechetInceptionDistance(Given())
    sides = {"ours": partial(ours.update, batch, real=True), "torchmetrics": partial(theirs.update, batch, real=True)}
    return row("batches of 128 vectors added", "batches/s", sides, 1, steps=5)


def sets() -> list[Row]:
    """Metrics of whole sets: 2,000 samples against 2,000, and the answers of a classifier to 10,000."""
    x, y = rectified(2_000, 1), 1.1 * rectified(2_000, 2) + 0.01
    logits = torch.randn(10_000, 1008, generator=torch.Generator().manual_seed(0))

    def ours(metric: FeatureMetric, *sides: Tensor) -> dict[str, float]:
        metric.reset()
        for vectors, real in zip(sides, (False, True), strict=False):
            metric.update(vectors, real=real)
        value = metric.compute()
        return {k: float(v) for k, v in (value if isinstance(value, dict) else {"distance": value}).items()}

    kernel = {
        "ours": partial(ours, KernelDistance(subsets=5), x, y),
        "torch-fidelity": partial(kid_features_to_metric, x, y, kid_subsets=5, kid_subset_size=1000, verbose=False),
    }
    clouds = {
        "ours": partial(ours, PRDC(), x, y),
        "torch-fidelity": partial(prc_features_to_metric, x, y, prc_neighborhood=3, verbose=False),
    }
    score = {
        "ours": partial(ours, InceptionScore(), logits),
        "torch-fidelity": partial(isc_features_to_metric, logits, 10, shuffle=False),
    }
    for sides in (kernel, clouds, score):
        found, expected = (list(side().values())[:1] for side in sides.values())
        assert math.isclose(found[0], expected[0], rel_tol=1e-6), (found, expected)
    return [
        row("kernel distance, 5 subsets of 1,000", "subsets/s", kernel, 5),
        row("precision and recall (ours: density and coverage too), 2,000 vectors", "measurements/s", clouds, 1),
        row("Inception score of 10,000", "scores/s", score, 1),
    ]


def row(job: str, unit: str, sides: Mapping[str, Callable[[], object]], work: int, steps: int = 1) -> Row:
    """One comparison at BLAS threads equal to torch's, where ours should be no slower."""

    def limited(step: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with LIBRARIES.limit(limits=torch.get_num_threads(), user_api="blas"):
                return step()

        return call

    timed = alternate({name: limited(step) for name, step in sides.items()}, steps=steps, rounds=5)
    other = next(name for name in sides if name != "ours")
    return Row(
        job=job,
        unit=unit,
        ours=work / timed["ours"].seconds,
        our_threads=timed["ours"].threads,
        other=other,
        others=work / timed[other].seconds,
        their_threads=timed[other].threads,
        target=1,
    )


@torch.no_grad()
def features(*, rounds: int = 5) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        random_weights(path)
        ours = InceptionExtractor(str(path))
        theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        ).eval()
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    found, expected = ours(images), theirs(images)[0]
    difference = float((found - expected).abs().max() / expected.abs().mean())
    print(f"features differ by at most {difference:.1e} of their mean size", flush=True)
    assert difference < 1e-5
    timed = alternate(
        {"ours": lambda: ours(images), "torch-fidelity": lambda: theirs(images)[0]}, steps=1, rounds=rounds
    )
    return Row(
        job="Inception's features of 32x32x3",
        unit="images/s",
        ours=BATCH / timed["ours"].seconds,
        our_threads=timed["ours"].threads,
        other="torch-fidelity",
        others=BATCH / timed["torch-fidelity"].seconds,
        their_threads=timed["torch-fidelity"].threads,
        target=1.3,
    )


def main() -> None:
    torch.manual_seed(0)
    frechet = [distances(rectified, 10_000), distances(rectified, 1_000), distances(mixed, 10_000)]
    report("metrics", [*frechet, streams(), *sets(), features()])


if __name__ == "__main__":
    main()
