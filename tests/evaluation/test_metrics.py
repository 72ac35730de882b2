"""Our metrics as torchmetrics': their own numbers, collections, modules of others, several processes, kept states."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.wrappers import FeatureShare

from imago.evaluation import (
    PRDC,
    Authenticity,
    ClassifierExtractor,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    NegativeLogLikelihood,
)
from imago.evaluation.neighbours import nearest
from imago.evaluation.network import ClassifierNetwork


class Features(nn.Module):
    """Somebody's network: 5 features, in float64; its dropout would show that it is trained."""

    num_features = 5

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(48, 5, generator=generator, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout((images.flatten(1).double() / 255) @ self.weight).tanh()


def images(n: int, seed: int, top: int = 256) -> Tensor:
    return torch.randint(0, top, (n, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def all_of(network: nn.Module | None, **options: Any) -> dict[str, Metric]:
    return {
        "frechet": FrechetDistance(network, **options),
        "kernel": KernelDistance(network, subsets=4, subset_size=20, **options),
        "prdc": PRDC(network, **options),
        "score": InceptionScore(network, splits=2, **options),
        "authenticity": Authenticity(network, **options),
    }


def fed(metrics: Any, fake: Tensor, real: Tensor, batch: int = 16) -> dict[str, float]:
    for part in real.split(batch):
        metrics.update(part, real=True)
    for part in fake.split(batch):
        metrics.update(part, real=False)
    return {name: float(value) for name, value in metrics.compute().items()}


FAKE, REAL = images(50, 1, top=200), images(60, 2)
FAKE[:3] = REAL[7:10]


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    return fed(MetricCollection(all_of(Features()), compute_groups=False), FAKE, REAL)


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save")
def test_numbers_are_torchmetrics_own() -> None:
    network = Features().eval()
    theirs = {
        "frechet": FrechetInceptionDistance(network),
        "kernel": KernelInceptionDistance(network, subsets=1, subset_size=50),
    }
    ours = {"frechet": FrechetDistance(network), "kernel": KernelDistance(network, subsets=1, subset_size=50)}
    for name, metric in ours.items():
        for side, real in ((FAKE, False), (REAL[:50], True)):
            metric.update(side, real=real)
            theirs[name].update(side, real=real)
        value = theirs[name].compute()
        expected = float(value[0] if isinstance(value, tuple) else value)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-9), name


def test_torchmetrics_takes_our_extractors() -> None:
    with torch.random.fork_rng(devices=[]):
        extractor = ClassifierExtractor(ClassifierNetwork.for_images(3, 4, 4, classes=3), "test")
    theirs, ours = FrechetInceptionDistance(extractor), FrechetDistance(extractor)
    fake, real = images(300, 1, top=200), images(300, 2)
    for metric in (theirs, ours):
        metric.update(fake, real=False)
        metric.update(real, real=True)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-4), "theirs is float32"
    score = InceptionScore(extractor)
    score.update(fake)
    alone = float(score.compute()["inception_score"])
    assert 1 < alone < 3, "of the extractor's answers"
    shared = fed(FeatureShare({"frechet": FrechetDistance(extractor), "score": InceptionScore(extractor)}), fake, real)
    assert shared["inception_score"] == pytest.approx(alone, rel=1e-5), "not of its features"
    extractor.logits = lambda features: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="knows no classes"):
        InceptionScore(extractor).update(fake)


@pytest.mark.parametrize("share", [False, True])
def test_a_collection_gives_the_numbers_of_each_alone(expected: dict[str, float], share: bool) -> None:
    """Collections share states that are equal; FeatureShare runs the network once for each batch."""
    network = Features()
    collection = (FeatureShare if share else MetricCollection)(all_of(network))
    found = fed(collection, FAKE, REAL)
    assert found == pytest.approx(expected, rel=1e-9)
    assert {*found} >= {"frechet", "kernel", "precision", "coverage", "inception_score", "authenticity", "copies"}
    assert found["copies"] == pytest.approx(3 / 50)
    assert not share or network.calls == 8, "4 batches of each side"
    collection.reset()
    assert fed(collection, FAKE, REAL) == pytest.approx(expected, rel=1e-9), "again"


def test_feature_vectors_may_be_given_instead_of_images(expected: dict[str, float]) -> None:
    network = Features().eval()
    metrics = MetricCollection({"frechet": FrechetDistance(num_features=5), "authenticity": Authenticity()})
    for real, side in ((True, REAL), (False, FAKE)):
        metrics.update(network(side), real=real, originals=side)
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-9)
    alone = Authenticity()
    alone.update(network(REAL), real=True)
    alone.update(network(REAL[:5]), real=False)
    assert alone.compute()["copies"] == 1, "equal vectors, where there are no images"


def test_real_images_stay_where_they_shall(expected: dict[str, float]) -> None:
    kept = MetricCollection(all_of(Features(), reset_real_features=False), compute_groups=False)
    fed(kept, images(40, 5), REAL)
    for _ in range(2):
        kept.reset()
        assert fed(kept, FAKE, REAL[:0]) == pytest.approx(expected, rel=1e-9)
    kept.reset()
    for name, value in kept(FAKE, real=False).items():  # forward, which must not count the real ones twice
        assert float(value) == pytest.approx(expected[name], rel=1e-9)
    assert fed(kept, FAKE[:0], REAL[:0]) == pytest.approx(expected, rel=1e-9), "nor afterwards"
    with pytest.raises(ValueError, match="real and generated images are needed"):
        fed(MetricCollection({"k": KernelDistance(Features())}), FAKE, REAL[:0])


def test_the_network_is_asked_in_evaluation_mode_without_gradient_and_left_as_it_was() -> None:
    network = Features()
    vectors = FrechetDistance(network).features(FAKE)
    assert torch.equal(vectors, network.eval()(FAKE))
    assert not vectors.requires_grad
    network.train()
    FrechetDistance(network).features(FAKE)
    assert network.dropout.training


def test_what_are_no_features_is_refused() -> None:
    for wrong in (FAKE, torch.ones(3), torch.ones(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="expected floats"):
            KernelDistance().update(wrong, real=True)
    with pytest.raises(ValueError, match="num_features"):
        FrechetDistance(nn.Identity())


def test_states_survive_pickling_and_merging(expected: dict[str, float]) -> None:
    metrics = all_of(Features())
    for name, metric in metrics.items():
        other = pickle.loads(pickle.dumps(metric))
        for part in (metric, other):
            side = slice(0, 32) if part is other else slice(32, None)
            part.update(REAL[side], real=True)
            part.update(FAKE[side], real=False)
        metric.merge_state(pickle.loads(pickle.dumps(other)))
        value = metric.compute()
        for key, number in (value if isinstance(value, dict) else {name: value}).items():
            assert float(number) == pytest.approx(expected[key], rel=1e-9), key


def test_states_are_kept_in_checkpoints_where_that_is_asked_for(expected: dict[str, float]) -> None:
    metrics = MetricCollection(all_of(Features()), compute_groups=False)
    fed(metrics, FAKE, REAL)
    assert not any("real" in name for name in metrics.state_dict())
    metrics.persistent(True)
    fresh = MetricCollection(all_of(Features()), compute_groups=False)
    fresh.persistent(True)
    fresh.load_state_dict(metrics.state_dict())
    for metric in fresh.values():
        metric._update_count = 1  # as torchmetrics restores no count
    assert {k: float(v) for k, v in fresh.compute().items()} == pytest.approx(expected, rel=1e-9)


def test_numbers_stay_on_the_device_of_their_images() -> None:
    """On a pretended GPU, where an operation between two devices is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True):

        def vectors(n: int) -> Tensor:
            return torch.empty(n, 8, device="cuda")

        for metric in (PRDC(), KernelDistance(subsets=2, subset_size=20), InceptionScore(splits=2)):
            metric.update(vectors(40), real=True)
            metric.update(vectors(30), real=False)
            value = metric.compute()
            found = list(value.values()) if isinstance(value, dict) else [value]
            assert {number.device.type for number in found} == {"cuda"}, type(metric).__name__
        nats = NegativeLogLikelihood(48)
        nats.update(torch.empty(30, device="cuda"))
        assert {number.device.type for number in nats.compute().values()} == {"cuda"}
        assert nearest(vectors(30), vectors(40))[0].device.type == "cuda"


def test_likelihood_in_nats_and_bits() -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)) * 20
    metric = MetricCollection([NegativeLogLikelihood(dimensions=48)])
    for part in values.split(8):
        metric.update(part)
    found = {name: float(value) for name, value in metric.compute().items()}
    nats, error = float(values.double().mean()), float(values.double().std()) / 30**0.5
    bits = 48 * math.log(2)
    expected = {"nats": nats, "nats_error": error, "bpd": nats / bits, "bpd_error": error / bits}
    assert found == pytest.approx(expected, rel=1e-12)
    one = NegativeLogLikelihood(48)
    one.update(values[:1])
    assert math.isnan(float(one.compute()["nats_error"])), "of one image there is no error"


class Anyone(lightning.LightningModule):
    """Not a model of ours: 'generated' images are the dark ones of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.quality = MetricCollection(all_of(Features()), compute_groups=False)
        self.nats = NegativeLogLikelihood(48)

    def validation_step(self, batch: list[Tensor]) -> None:
        fake, real = batch
        self.quality.update(fake, real=False)
        self.quality.update(real, real=True)
        self.nats.update(fake.flatten(1).float().sum(1))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.quality.compute())
        self.log("nats", self.nats.compute()["nats"])
        self.quality.reset()
        self.nats.reset()


def test_in_a_module_of_others(expected: dict[str, float], tmp_path: Path) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(FAKE, REAL[:50]), 16)
    want = fed(MetricCollection(all_of(Features()), compute_groups=False), FAKE, REAL[:50])
    model = Anyone()
    for _ in range(2):
        (found,) = trainer.validate(model, loader, verbose=False)
        assert found.pop("nats") == pytest.approx(float(FAKE.flatten(1).float().sum(1).mean()), rel=1e-6)
        assert found == pytest.approx(want, rel=1e-6)


def measure_in_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metrics = MetricCollection(all_of(Features()), compute_groups=False)
    half = slice(0, 32) if rank == 0 else slice(32, None)
    found = fed(metrics, FAKE[half], REAL[half])
    nats = NegativeLogLikelihood(48)
    nats.update(torch.arange(10.0)[2 * rank + rank : 4 + 6 * rank])
    found["nats"] = float(nats.compute()["nats"])
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_measure_together(expected: dict[str, float], tmp_path: Path) -> None:
    """Their parts differ in size; in the order of the ranks they are the whole."""
    start: Callable[..., Any] = torch.multiprocessing.start_processes
    start(measure_in_two, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.pop("nats") == pytest.approx(float(torch.cat([torch.arange(4.0), torch.arange(3.0, 10)]).mean()))
        assert found == pytest.approx(expected, rel=1e-9)
