import hashlib
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imago import downloads
from imago.data import ImageSet
from imago.errors import UserError
from imago.evaluation import Auto, Classifier, FeatureExtractor, Inception, InceptionExtractor, SampleQuality, choices
from imago.evaluation.choices import INCEPTION_FILE, INCEPTION_SHA256, SHIPPED, network_from, train_on

from .conftest import CPU, Squares
from .conftest import extractor_of as build

DEAD = "http://127.0.0.1:9/weights.pth"


class StandIn(InceptionExtractor):
    """Knows its file, and features that are nothing."""

    def __init__(self, weights: str) -> None:
        if Path(weights).read_bytes() != b"inception":
            raise ValueError("not Inception weights in torch-fidelity's layout")
        FeatureExtractor.__init__(self)
        self.file = Path(weights)

    def features(self, images):
        return torch.zeros(len(images), 2)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(choices, "InceptionExtractor", StandIn)
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 500)
    monkeypatch.setattr(choices, "EFFICIENTNET_PACKAGE", "a_package_that_nobody_has_installed")  # test_efficientnet.py


SHA256 = hashlib.sha256(b"inception").hexdigest()


@pytest.fixture
def server(serve):
    return serve({"good.pth": b"inception", "bad.pth": b"tampered with"})


def test_published_address_is_torch_fidelitys():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert choices.INCEPTION_URL == URL_INCEPTION_V3
    assert INCEPTION_SHA256[:8] in INCEPTION_FILE


def test_inception_is_downloaded_once_and_checked(squares, server):
    url, requests = server
    data = squares(channels=3)
    inception = Inception(url=f"{url}/good.pth", sha256=SHA256)
    for _ in range(2):
        extractor, _ = build(inception, data)
        assert extractor.file == data.directory / "weights" / INCEPTION_FILE
    assert requests == ["/good.pth"]


def test_inception_that_is_tampered_with_is_refused(squares, server):
    url, _ = server
    data = squares(channels=3)
    with pytest.raises(UserError, match="SHA-256"):
        build(Inception(url=f"{url}/bad.pth", sha256=SHA256), data)
    assert not (data.directory / "weights").exists(), "an empty folder is nothing to keep"
    (data.directory / "weights").mkdir()
    (data.directory / "weights" / INCEPTION_FILE).write_bytes(b"damaged on disk")
    with pytest.raises(UserError, match="damaged"):
        build(Inception(url=f"{url}/good.pth", sha256=SHA256), data)


def test_inception_that_cannot_be_had_says_what_to_do(squares):
    data = squares(channels=3)
    with pytest.raises(UserError) as refusal:
        build(Inception(url=DEAD), data)
    for remedy in (
        DEAD,
        INCEPTION_SHA256,
        str(data.directory),
        INCEPTION_FILE,
        "metrics.weights=",
        "metrics=classifier",
    ):
        assert remedy in str(refusal.value)


def test_a_dead_network_is_asked_once(squares, monkeypatch):
    calls = []

    def refuse(url, *args, **kwargs):
        calls.append(url)
        raise choices.DownloadError("no network")

    monkeypatch.setattr(choices, "download", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="no network"):
            build(Inception(), squares(channels=3))
    assert len(calls) == 1


@pytest.mark.parametrize(("reason", "asked"), [("no connection", 2), ("404", 3)])
def test_other_processes_wait_ten_minutes_before_they_ask_a_dead_network_again(squares, monkeypatch, reason, asked):
    calls, data, now = [], squares(channels=3), time.time()

    def refuse(url, *args, **kwargs):
        calls.append(url)
        raise (downloads.UnreachableError if asked == 2 else downloads.DownloadError)(reason)

    monkeypatch.setattr(choices, "download", refuse)
    for seconds, said in (
        (0, reason),
        (590, r"no connection at \d\d:\d\d; .*unreachable\.json is"),
        (610, reason),
    ):
        monkeypatch.setattr(choices, "_failed_downloads", {})
        monkeypatch.setattr(downloads.time, "time", lambda now=now + seconds: now)
        with pytest.raises(UserError, match=said if asked == 2 else reason):
            build(Inception(), data)
    assert len(calls) == asked


def test_inception_by_path(squares, tmp_path):
    data = squares(channels=3)
    path = tmp_path / "my.pth"
    path.write_bytes(b"inception")
    _, notices = build(Inception(url=DEAD), data, str(path))
    assert "not the published Inception weights" in notices
    _, notices = build(Inception(url=DEAD, sha256=SHA256), data, str(path))
    assert "not the published" not in notices
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"metrics\.weights=.*not Inception weights"):
        build(Inception(url=DEAD), data, str(path))
    with pytest.raises(UserError, match=r"metrics\.weights=.*no such file"):
        build(Inception(url=DEAD), data, str(tmp_path / "typo.pth"))


def test_classifier_is_trained_at_first_use_and_kept(squares):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, notices = build(Classifier(), squares())
    assert "trained on this machine" in notices
    assert "accuracy 100.0%" in notices
    assert torch.equal(torch.get_rng_state(), before)
    data = squares()
    (cached,) = (data.directory / "cache").glob("classifier-squares-*.pt")
    written = cached.stat().st_mtime_ns
    second, notices = build(Classifier(), data)
    assert second.fingerprint == first.fingerprint
    assert cached.stat().st_mtime_ns == written
    assert "trained on this machine" in notices
    cached.write_bytes(cached.read_bytes()[:100])
    third, _ = build(Classifier(), data)
    assert third.fingerprint == first.fingerprint
    content = torch.load(cached, weights_only=True)
    next(iter(content["weights"].values())).flatten()[0] = torch.nan
    for useless in (content, {"weights": {}}):
        torch.save(useless, cached)
        assert build(Classifier(), data)[0].fingerprint == first.fingerprint


def test_other_data_get_another_classifier(squares):
    one, _ = build(Classifier(), squares())
    two, _ = build(Classifier(), squares(count=200))
    assert one.fingerprint != two.fingerprint


def test_unlabelled_data_have_no_classifier(squares):
    with pytest.raises(UserError, match=r"squares has no labels.*metrics=inception.*metrics\.weights=.*metrics=none"):
        build(Classifier(), squares(labelled=False))


def test_classifier_by_path(squares, tmp_path):
    data = squares()
    path = tmp_path / "mine.pt"
    torch.save(train_on(data, images_seen=64, seed=0, device=CPU), path)
    extractor, _ = build(Classifier(), squares(labelled=False), str(path))
    assert extractor.name == "classifier (mine.pt)"
    with pytest.raises(UserError, match="trained on 1 channels, but squares has 3"):
        build(Classifier(), squares(channels=3), str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not the weights of a classifier"):
        build(Classifier(), data, str(path))
    with pytest.raises(UserError, match="no such file"):
        build(Classifier(), data, str(tmp_path / "typo.pt"))


def test_shipped_weights_belong_to_shipped_data_of_their_shape(squares, monkeypatch):
    own, _ = build(Classifier(), squares(name="mnist", height=28, width=28))
    assert own.name == "classifier (mnist, trained at first use)", "a folder of this name may hold anything"
    monkeypatch.setitem(choices.SHIPPED_FOR, Squares, "mnist")
    for levels in (256, 2):
        shipped, notices = build(Classifier(), squares(height=28, width=28, levels=levels))
        assert shipped.name == "classifier (squares, shipped)"
        assert not notices
    other, _ = build(Classifier(), squares())
    assert other.name == "classifier (squares, trained at first use)"


def test_a_classifier_of_one_class_is_refused(squares):
    data = squares()
    data.spec = replace(data.spec, class_counts=(0, 300))
    with pytest.raises(UserError, match=r"metrics=classifier: .* of one class, bright: .* nothing\. Set metrics=incep"):
        build(Classifier(), data)
    nothing, notices = build(Auto(), data)
    assert nothing is None
    assert "sample quality is not measured. metrics=classifier: all training images" in notices


def test_a_classifier_that_learned_nothing_is_doubted(squares, monkeypatch):
    """Labels that have nothing to do with the images: it is right no more often than the largest class is."""
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 256)
    data = squares(name="x" * 255)
    data.train = ImageSet(data.train.images, (torch.arange(300) % 3 == 0).long())
    data.val = ImageSet(data.val.images, (torch.arange(40) % 2).long())
    data.spec = replace(data.spec, class_counts=(200, 100))
    for _ in ("trained", "from the cache"):
        metrics = SampleQuality(Classifier(), samples=100, subsets=2, full=True)
        metrics.prepare(data, CPU)
        assert "fd_classifier is unreliable: the classifier learned nothing" in metrics.notices[1]
    found = {m.name: m for m in metrics.measure(lambda n, first: data.train.images[first : first + n])}
    for m in found.values():
        doubted = "learned nothing, it is right in 50.0% of held-out images, and the largest class alone is 66.7%"
        assert (doubted in m.protocol.caveat) == (m.name not in ("copies", "edge_width"))
    assert found["kd_classifier"].protocol.caveat.endswith("; subsets of 100 instead of 1000: too few images")


def test_accuracy_is_of_classes_that_have_training_images(squares, monkeypatch):
    data = squares()
    data.spec = replace(data.spec, classes=3, class_names=("dark", "bright", "never"), class_counts=(150, 150, 0))
    data.val = ImageSet(data.val.images, data.val.labels.clone())
    data.val.labels[:10] = 2
    data.test = ImageSet(data.test.images[:5], torch.full((5,), 2))
    content = choices.train_on(data, images_seen=20_000, seed=0, device=CPU)
    assert (content["validation_accuracy"], content["test_accuracy"]) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_shipped_files_are_small_safe_and_good(name):
    path = SHIPPED / f"{name}.pt"
    assert path.stat().st_size <= 1_000_000
    content = torch.load(path, weights_only=True)
    assert content["test_accuracy"] >= {"digits": 0.97, "mnist": 0.99, "cifar10": 0.8}[name]
    assert network_from(content).channels == content["shape"][0]


def test_auto_takes_the_classifier_for_gray_and_inception_for_colour(squares, server):
    url, requests = server
    auto = Auto(Inception(url=f"{url}/good.pth", sha256=SHA256))
    gray, _ = build(auto, squares())
    assert gray.name == "classifier (squares, trained at first use)"
    assert requests == []
    colour, _ = build(auto, squares(channels=3))
    assert colour.metric_names == ("fid", "kid")


def test_what_a_classifier_will_take_is_said_before_it_is_trained(squares, capsys, monkeypatch):
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 1024)
    build(Classifier(), squares(name="my {own}"))
    build(Classifier(), squares(name="my {own}"))
    said = r"Training a classifier of my \{own\} for the metrics, once: about \d+ s; metrics=none does without\n"
    assert re.fullmatch(said, capsys.readouterr().err), "of the first use alone"


def test_auto_falls_back_loudly(squares):
    auto = Auto(Inception(url=DEAD))
    extractor, notices = build(auto, squares(channels=3))
    assert extractor.metric_names == ("fd_classifier", "kd_classifier")
    assert "val/fd_classifier is measured instead of val/fid" in notices
    assert DEAD in notices
    nothing, notices = build(auto, squares(channels=3, labelled=False))
    assert nothing is None
    assert re.search(
        r"sample quality is not measured\. metrics=inception: .* metrics=classifier: .* no labels", notices
    )
    assert "instead of val/fid" not in notices


def test_auto_does_not_spend_hours_on_a_cpu(squares, server, monkeypatch):
    url, requests = server
    monkeypatch.setattr(choices, "_CPU_SECONDS", 60.0)
    auto = Auto(Inception(url=f"{url}/good.pth", sha256=SHA256))
    extractor, notices = build(auto, squares(channels=3))
    assert extractor.metric_names == ("fd_classifier", "kd_classifier")
    assert "5.0 hours" in notices
    assert "metrics=inception" in notices
    assert requests == []
