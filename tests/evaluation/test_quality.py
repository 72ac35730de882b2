import json
from pathlib import Path

import hydra
import pytest
import torch

from imago.data import Dataset
from imago.errors import UserError
from imago.evaluation import (
    Auto,
    ClassifierExtractor,
    ExtractorChoice,
    Protocol,
    ReferenceStatistics,
    SampleQuality,
)
from imago.evaluation.cache import Cache
from imago.evaluation.network import ClassifierNetwork
from imago.evaluation.reference import batches_of_features
from imago.images import ImageSpec

CPU = torch.device("cpu")


class Given(ExtractorChoice):
    """A fixed random network, so that nothing has to be trained."""

    def build(self, data, device, weights, notify):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ClassifierExtractor(ClassifierNetwork.for_images(*data.spec.shape, classes=2), "random")


class Nothing(ExtractorChoice):
    def build(self, data, device, weights, notify):
        notify("nothing to measure")


def sampler(images):
    return lambda n, first: images[first : first + n]


def quality(data, **options):
    result = SampleQuality(Given(), **{"samples": 200, "batch_size": 64, "subsets": 5, "subset_size": 50, **options})
    result.prepare(data, CPU)
    return result


def noise(data, n=200):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, data.spec.levels, (n, *data.spec.shape), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(
    "options", [{}, {"channels": 3, "height": 32, "width": 48}, {"levels": 2}, {"binarize": "dynamic"}]
)
def test_training_images_are_near_and_noise_is_far(squares, options):
    data = squares(**options)
    metrics = quality(data)
    assert metrics.names == ["fd_classifier", "kd_classifier"]
    near, far = (metrics.measure(sampler(x)) for x in (data.training_images(), noise(data)))
    for a, b in zip(near, far, strict=True):
        assert abs(a.value) < 0.2 * b.value
    assert [m.name for m in far] == metrics.names


def test_the_training_split_itself_has_distance_zero(squares):
    data = squares()
    (distance, _) = quality(data, samples=300).measure(sampler(data.training_images()))
    assert distance.value == pytest.approx(0, abs=1e-6)


def test_batch_size_changes_no_number(squares):
    data = squares()
    images = noise(data)
    values = [[m.value for m in quality(data, batch_size=b).measure(sampler(images))] for b in (200, 7)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_protocol_says_how_each_number_was_obtained(squares):
    data = squares()
    frechet, kernel = quality(data).measure(sampler(noise(data)))
    assert frechet.protocol.reference == "squares train"
    assert frechet.protocol.reference_fingerprint == data.fingerprint
    assert frechet.protocol.reference_images == 300
    assert frechet.protocol.samples == 200
    assert frechet.protocol.extractor == "classifier (random)"
    assert frechet.protocol.caveat == "none"
    assert kernel.protocol.subset_size == 50
    assert kernel.protocol.caveat == "none"
    assert Protocol.from_dict(json.loads(json.dumps(frechet.protocol.as_dict()))) == frechet.protocol


def test_too_few_samples_are_said_beside_the_number(squares):
    data = squares()
    frechet, kernel = quality(data, samples=30).measure(sampler(noise(data)))
    assert "unreliable: 30 images for covariances of 56 features" in frechet.protocol.caveat
    assert kernel.protocol.subset_size == 30
    assert "subsets of 30 instead of 50" in kernel.protocol.caveat


def test_a_caveat_ends_where_its_reason_does(squares):
    """57 images give 56 features a covariance of full rank; a split of 3 can name more than 2 classes, one of 2 not."""
    data = squares()
    for samples, told in ((56, "unreliable: 56 images"), (57, "none")):
        assert quality(data, samples=samples).measure(sampler(noise(data)))[0].protocol.caveat.startswith(told)
    for samples, told in ((29, "unreliable: splits of 2 images for 2 classes"), (30, "none")):
        found = quality(data, samples=samples, full=True).measure(sampler(noise(data)))
        (score,) = [m for m in found if m.name == "inception_score_classifier"]
        assert score.protocol.caveat == told


def test_samples_of_one_class_are_precise_and_recall_that_class_alone(squares):
    """Whatever the order of the training images: the ones that are compared with are a random choice."""
    data = squares()
    order = data.train.labels.argsort(stable=True)
    data.train.images[:] = data.train.images[order]
    data.train.labels[:] = data.train.labels[order]
    bright = data.training_images()[data.train.labels == 1][:100]
    found = {m.name: m.value for m in quality(data, samples=100, full=True).measure(sampler(bright))}
    share = float(data.train.labels.double().mean())
    assert found["precision_classifier"] > 0.75
    assert found["recall_classifier"] == pytest.approx(share, abs=0.15)


def test_thorough_measurements_say_their_counts_and_see_the_difference(squares):
    data = squares()
    metrics = quality(data, full=True)
    clouds = ("precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage")
    others = ("fd_infinity", "mind", *clouds, "inception_score", "authenticity")
    suffixed = [f"{name}_classifier" for name in others]
    assert metrics.names == ["fd_classifier", "kd_classifier", *suffixed, "copies", "edge_width"]
    near, far = (metrics.measure(sampler(x)) for x in (data.training_images(), noise(data)))
    assert [m.name for m in near] == metrics.names
    for a, b in zip(near[2:4], far[2:4], strict=True):
        assert a.value < b.value
    assert 0 < near[2].protocol.error < 1
    assert near[2].protocol.caveat == "unreliable: parts of 40 images for covariances of 56 features"
    assert (near[3].protocol.samples, near[3].protocol.reference_images) == (200, 200)
    for a, b in zip(near[4:10], far[4:10], strict=True):
        assert a.value > 0.5 > b.value
        assert (a.protocol.samples, a.protocol.reference_images) == (200, 200), "as many of each"
        assert (near[0].protocol.samples, near[0].protocol.reference_images) == (200, 300)
    assert [m.protocol.neighbours for m in near[4:10]] == [3, 3, 5, 5, 5, 5]
    assert near[10].protocol.splits == 10
    assert near[10].protocol.deviation > 0
    assert 1 < near[10].value < 2, "of two classes"
    plain = quality(data).measure(sampler(noise(data)))
    assert [m.value for m in plain] == [m.value for m in far[:2]], "and the distances are the same without"


def test_more_samples_than_training_images_are_measured_at_equal_counts(squares):
    data = squares()
    shuffled = data.training_images()[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    found = quality(data, samples=400, full=True).measure(sampler(torch.cat([shuffled, noise(data)])))
    assert [m.value for m in found[4:6]] == [1, 1], "the first 300 samples are all of the training images"
    assert (found[4].protocol.samples, found[4].protocol.reference_images) == (300, 300)


def test_too_few_samples_for_neighbours_are_said_at_the_start(squares):
    metrics = quality(squares(), samples=5, full=True)
    assert metrics.names[2:] == [
        "mind_classifier",
        "inception_score_classifier",
        "authenticity_classifier",
        "copies",
        "edge_width",
    ]
    assert "metrics.samples=5: precision, recall, density and coverage are left out" in metrics.notices[0]
    (*_, score, _, _, _) = metrics.measure(sampler(noise(squares())))
    assert score.protocol.splits == 5
    assert "splits of 1 images for 2 classes" in score.protocol.caveat


@pytest.mark.parametrize(
    "options", [{}, {"channels": 3, "height": 32, "width": 48}, {"labelled": False}, {"binarize": "dynamic"}]
)
def test_training_images_are_copies_and_held_out_images_are_not(squares, options):
    data = squares(**options)
    metrics = quality(data, samples=40, full=True)
    memorised, unseen = (
        [m for m in metrics.measure(sampler(x)) if m.name in ("authenticity_classifier", "copies")]
        for x in (data.training_images(), data.val.images)
    )
    assert [m.value for m in memorised] == [0, 1]
    for m, copied in zip(unseen, memorised, strict=True):
        assert m.value == m.protocol.held_out_value == copied.protocol.held_out_value, "the yardstick itself"
        assert (m.protocol.held_out, m.protocol.held_out_images) == ("squares val", 40)
        assert m.protocol.reference_images == 300
        assert ("one draw" in m.protocol.caveat) == ("binarize" in options)
    assert unseen[0].value > 0.3
    assert unseen[1].value == 0


def test_as_many_held_out_images_as_samples_are_judged_if_there_are_so_many(squares, monkeypatch):
    data = squares()
    data.val.images[20:] = data.training_images()[:20]

    def held_out(samples):
        measured = quality(data, samples=samples, full=True).measure(sampler(noise(data)))
        found = {m.name: m.protocol for m in measured if m.protocol.held_out}
        at_equal_counts = {m.name for m in measured} if samples <= 40 else set()
        assert set(found) == at_equal_counts | {"authenticity_classifier", "copies", "edge_width"}
        return [
            (found[name].held_out_images, found[name].held_out_value) for name in ("authenticity_classifier", "copies")
        ]

    (_, authentic), copied = held_out(20)
    assert copied == (20, 0), "the copies are behind"
    assert held_out(30) == [(30, pytest.approx(authentic * 2 / 3)), (30, pytest.approx(1 / 3))]
    assert held_out(50) == [(40, pytest.approx(authentic / 2)), (40, 0.5)]
    monkeypatch.setattr("imago.evaluation.reference._HELD_OUT", 25)
    assert held_out(50) == [(25, pytest.approx(authentic * 4 / 5)), (25, pytest.approx(1 / 5))]


def test_held_out_images_stand_beside_every_number_of_samples(squares):
    """They are what a sampler of them would measure, and another sampler has the same beside it."""
    data = squares()
    metrics = quality(data, samples=40, full=True)
    own, other = (metrics.measure(sampler(x)) for x in (data.val.images, noise(data)))
    for m, beside in zip(own, other, strict=True):
        assert m.protocol.held_out_value == beside.protocol.held_out_value == pytest.approx(m.value), m.name
        assert m.protocol.held_out == "squares val"


def test_means_are_looked_at_for_edges_alone(squares):
    data = squares()
    metrics = quality(data, samples=40, full=True)
    sharp = {m.name: m.value for m in metrics.measure(sampler(data.val.images))}
    blurred = data.val.images.float().unfold(3, 3, 1).mean(-1).round().to(torch.uint8)
    padded = torch.nn.functional.pad(blurred, (1, 1, 0, 0))
    found = {m.name: m.value for m in metrics.measure(sampler(data.val.images), means=sampler(padded))}
    assert found.pop("edge_width") != sharp.pop("edge_width")
    assert found == sharp
    binary = quality(squares(binarize="threshold"), samples=40, full=True)
    assert "edge_width" not in binary.names, "edges of two values are one pixel wide"


def test_all_training_images_count_not_only_the_kept_ones(squares, monkeypatch):
    monkeypatch.setattr("imago.evaluation.reference._KEPT", 50)
    data = squares()
    found = {m.name: m for m in quality(data, samples=300, full=True).measure(sampler(data.training_images()))}
    assert (found["authenticity_classifier"].value, found["copies"].value) == (0, 1)
    assert found["precision_classifier"].protocol.reference_images == 50
    monkeypatch.setattr("imago.evaluation.reference._AFFORDABLE", 56 * 100)
    data = squares(count=299)
    found = {m.name: m for m in quality(data, samples=200, full=True).measure(sampler(data.training_images()))}
    assert found["authenticity_classifier"].protocol.reference_images == 100, "what is kept of larger data"
    assert found["authenticity_classifier"].value == 0 or found["copies"].value == 1
    monkeypatch.setattr("imago.evaluation.reference._AFFORDABLE", 1)
    data = squares(count=298)
    found = {m.name: m for m in quality(data, samples=200, full=True).measure(sampler(data.training_images()))}
    assert found["authenticity_classifier"].protocol.reference_images == 2, "one, and its neighbour"


def test_features_of_all_images_are_computed_once(squares, monkeypatch):
    import imago.evaluation.reference as reference

    asked, batches = [], reference.batches_of_features

    def counting(images, *arguments):
        asked.append(len(images))
        return batches(images, *arguments)

    monkeypatch.setattr(reference, "batches_of_features", counting)
    data = squares()
    first = [m.value for m in quality(data, full=True).measure(sampler(noise(data)))]
    assert asked == [300, 40], "training and validation images; the statistics come from them"
    assert [m.value for m in quality(squares(), full=True).measure(sampler(noise(data)))] == first
    quality(squares())
    assert asked == [300, 40]
    (tmp,) = [path for path in (data.directory / "cache").iterdir() if path.name.startswith("features-")]
    tmp.write_bytes(tmp.read_bytes()[:-100])
    assert [m.value for m in quality(squares(), full=True).measure(sampler(noise(data)))] == first
    whole = torch.load(tmp, weights_only=True)
    torch.save(whole | {"held_out": whole["held_out"][1:]}, tmp)
    assert [m.value for m in quality(squares(), full=True).measure(sampler(noise(data)))] == first


def test_points_have_no_features(squares):
    data = squares()
    samples = noise(data)
    data.spec = ImageSpec(2, 1, 1, levels=0)
    metrics = quality(data)
    assert metrics.names == metrics.measure(sampler(samples)) == []
    assert metrics.notices == ["the quality of samples is not measured: features are of pictures, not of points in R^2"]


@pytest.mark.parametrize("full", [False, True])
def test_data_that_are_not_in_memory_are_read_in_pieces(squares, full, monkeypatch):
    monkeypatch.setattr("imago.evaluation.neighbours._AT_ONCE", 64)

    class Far(Dataset):
        def __init__(self, near):
            self.near = near

        def __len__(self):
            return len(self.near)

        def take(self, indices):
            assert len(indices) <= 64, "more than was asked for"
            return self.near.take(indices)

    def values(data):
        return [m.value for m in quality(data, full=full, batch_size=64).measure(sampler(noise(data)))]

    near, far = squares(), squares()
    assert far.fingerprint == near.fingerprint  # which is made at once
    far.train, far.val = Far(far.train), Far(far.val)
    for file in (far.directory / "cache").glob("*"):
        file.unlink()
    found = values(far)
    for file in (far.directory / "cache").glob("*"):
        file.unlink()
    assert found == values(near)


def test_measuring_leaves_no_trace(squares):
    data = squares()
    metrics = quality(data)
    weight = torch.ones((), requires_grad=True)

    def sample(n, first):
        assert not torch.is_grad_enabled()
        return (torch.rand(n, *data.spec.shape) * weight * 255).to(torch.uint8)  # a careless model

    torch.manual_seed(1)
    before = torch.get_rng_state()
    seen = []
    metrics.measure(sample, lambda done, total: seen.append((done, total)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert weight.grad is None
    assert seen == [(64, 200), (128, 200), (192, 200), (200, 200)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, first: torch.rand(n, 1, 28, 20), "float32"),
        (lambda n, first: torch.zeros(n, 1, 20, 28, dtype=torch.uint8), "images of 1x20x28"),
        (lambda n, first: torch.zeros(1, 1, 28, 20, dtype=torch.uint8), "1 samples where 64 were asked for"),
        (
            lambda n, first: torch.full((n, 1, 28, 20), 255, dtype=torch.uint8),
            "up to 255 for a model of 2 levels",
        ),
    ],
)
def test_what_is_not_an_image_of_the_data_is_refused(squares, wrong, message):
    with pytest.raises((UserError, ValueError), match=message):
        quality(squares(levels=2)).measure(wrong)


def test_reference_is_computed_once_and_again_when_damaged(squares, monkeypatch):
    data = squares()
    values = [m.value for m in quality(data).measure(sampler(noise(data)))]
    (cached,) = (data.directory / "cache").iterdir()
    compute, computed = ReferenceStatistics.of, []

    def counting(*args, **kwargs):
        computed.append(1)
        return compute(*args, **kwargs)

    monkeypatch.setattr(ReferenceStatistics, "of", counting)
    assert [m.value for m in quality(squares()).measure(sampler(noise(data)))] == values
    assert not computed
    for content in (b"", cached.read_bytes()[:-100]):
        cached.write_bytes(content)
        assert [m.value for m in quality(squares()).measure(sampler(noise(data)))] == values
        assert computed
        computed.clear()
    whole = torch.load(cached, weights_only=True)
    for wrong in ({"mean": 1}, whole | {"mean": whole["mean"] * torch.nan}, whole | {"features": torch.zeros(3, 1)}):
        torch.save(wrong, cached)
        assert [m.value for m in quality(squares()).measure(sampler(noise(data)))] == values
        assert computed
        computed.clear()


def test_other_data_and_other_treatment_have_their_own_reference(squares):
    for options in ({}, {"count": 200}, {"binarize": "threshold"}, {"binarize": "dynamic"}):
        quality(squares(**options))
    assert len(list(Path("data/cache").iterdir())) == 4


def test_reference_keeps_a_random_choice_of_features(squares, monkeypatch):
    monkeypatch.setattr("imago.evaluation.reference._KEPT", 50)
    data = squares()
    extractor = Given().build(data, CPU, None, None)
    reference = ReferenceStatistics.of(batches_of_features(data.train, 256, extractor, 64, CPU), 300)
    everything = extractor(data.training_images())
    distances = torch.cdist(reference.features, everything)
    places = distances.argmin(1)
    assert distances.amin(1).max() < 1e-2
    assert len(set(places.tolist())) == 50
    assert int(places.max()) > 250
    torch.testing.assert_close(reference.mean, everything.double().mean(0), rtol=1e-5, atol=1e-5)
    reference.save(Cache(data.directory), data.fingerprint, extractor)
    loaded = ReferenceStatistics.load(Cache(data.directory), data.fingerprint, extractor)
    assert torch.equal(loaded.covariance, reference.covariance)
    assert loaded.count == 300


def test_where_nothing_can_be_measured_nothing_is(squares):
    metrics = SampleQuality(Nothing())
    metrics.prepare(squares(), CPU)
    assert metrics.names == []
    assert metrics.measure(lambda n, first: pytest.fail("drew samples")) == []
    assert metrics.notices == ["nothing to measure"]
    none = SampleQuality(None)
    none.prepare(squares(), CPU)
    assert (none.names, none.notices, none.measure(lambda n, first: pytest.fail("drew samples"))) == ([], [], [])


def test_one_training_image_is_too_few(squares):
    with pytest.raises(UserError, match="1 training images"):
        quality(squares(count=1, batch_size=1))


@pytest.mark.parametrize("name", ["auto", "inception", "classifier", "none"])
def test_every_configuration_is_a_constructor_call(name):
    folder = Path(__file__).parents[2] / "conf"
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        config = hydra.compose(overrides=[f"+metrics={name}"])
    metrics = hydra.utils.instantiate(config.metrics)
    if name == "none":
        assert metrics.choice is None
    else:
        assert isinstance(metrics.choice, ExtractorChoice)
        assert (metrics.samples, metrics.subsets, metrics.subset_size) == (10_000, 100, 1000)


def test_end_to_end_on_digits(tmp_path, monkeypatch):
    """The shipped classifier tells unseen digits from noise."""
    from imago.data import ImageDataModule
    from imago.data.sources import Digits

    monkeypatch.chdir(tmp_path)
    data = ImageDataModule(Digits(), dir=str(tmp_path))
    data.prepare()
    metrics = SampleQuality(Auto(), samples=180, subsets=10)
    metrics.prepare(data, CPU)
    assert metrics.notices == []
    real, _ = metrics.measure(sampler(data.test.images))
    random, _ = metrics.measure(sampler(noise(data)))
    assert real.value < 0.05 * random.value


def test_balls_of_few_images_hold_noise_and_the_protocol_says_so(tmp_path, monkeypatch):
    """Why precision of some dozens of samples has a caveat: docs/metrics.md."""
    from imago.data import ImageDataModule
    from imago.data.sources import Digits

    monkeypatch.chdir(tmp_path)
    data = ImageDataModule(Digits(), dir=str(tmp_path))
    data.prepare()
    noisy = noise(data, 200)
    found = {}
    for count in (20, 200):
        metrics = SampleQuality(Auto(), samples=count, subsets=10, full=True)
        metrics.prepare(data, CPU)
        found[count] = {m.name: m for m in metrics.measure(sampler(noisy))}
    few, enough = (found[count]["precision_classifier"] for count in (20, 200))
    assert few.value > 0.8 > 0.1 > enough.value
    for name in ("precision", "recall", "density", "coverage"):
        assert found[20][f"{name}_classifier"].protocol.caveat.startswith("unreliable: the balls of 20 images")
        assert found[200][f"{name}_classifier"].protocol.caveat == "none"
