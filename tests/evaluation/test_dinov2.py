"""metrics=dinov2: with a small network in the place of torch.hub's, and with torch.hub itself on a folder."""

import socket
import zipfile
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA, FeatureExtractorDinoV2

from imago.errors import UserError
from imago.evaluation import DinoV2, DinoV2Extractor, SampleQuality, choices

from .conftest import CPU
from .conftest import extractor_of as build

TINY = """
import torch

class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_dim = 5
        self.patches = torch.nn.Conv2d(3, 5, 14, 14)
        self.dropout = torch.nn.Dropout()

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return self.dropout(self.patches(x).tanh()).mean((2, 3))

def dinov2_vitl14():
    print("talk")
    torch.manual_seed(0)
    return Tiny()
"""


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """torch.hub with an empty cache and no network."""

    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("XFORMERS_DISABLED", "1")
    return tmp_path / "hub"


@pytest.fixture
def filled(hub):
    """The same with the code of a small network in the cache."""
    folder = hub / choices.DINOV2_HUB.replace("/", "_").replace(":", "_")
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(TINY)
    return folder


def test_the_cache_of_torch_hub_needs_no_network(squares, filled, capfd):
    data = squares(channels=3)
    before = torch.get_rng_state()
    extractor, notices = build(DinoV2(), data)
    assert torch.equal(torch.get_rng_state(), before)
    assert extractor.name == "dinov2-vit-l-14"
    assert extractor.dimensions == 5
    assert "executes code of github.com/facebookresearch/dinov2 (commit e1277af)" in notices
    assert str(filled.parent) in notices
    assert "dinov2-vit-l-14 takes about" in notices
    out, err = capfd.readouterr()
    assert "talk" in err
    assert out == ""


def test_the_archive_of_the_commit_is_all_that_is_downloaded(squares, hub, tmp_path, monkeypatch):
    """GitHub's interface, which would be asked whose the commit is, allows an address 60 questions an hour."""
    repository, commit = choices.DINOV2_HUB.split(":")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.mkdir(f"dinov2-{commit}")
        archive.writestr(f"dinov2-{commit}/hubconf.py", TINY)
    asked = []

    def serve(request, *args, **kwargs):
        asked.append(request.full_url)
        return urlopen((tmp_path / "archive.zip").as_uri())

    monkeypatch.setattr(torch.hub, "urlopen", serve)
    extractor, _ = build(DinoV2(), squares(channels=3))
    assert extractor.dimensions == 5
    assert asked == [f"https://github.com/{repository}/zipball/{commit}"]
    build(DinoV2(), squares(channels=3))
    assert len(asked) == 1


def test_features_are_torch_fidelitys(squares, filled, monkeypatch):
    images = torch.randint(0, 256, (6, 3, 20, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours, _ = build(DinoV2(), squares(channels=3))
    found = ours(images)
    assert found.dtype == torch.float32
    assert found.shape == (6, 5)
    assert float(found.std(0).min()) > 0.001, "images can be told apart"
    real = torch.hub.load
    monkeypatch.setattr(torch.hub, "load", lambda repository, entry: real(str(filled), entry, source="local"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
        assert torch.equal(found, theirs(images)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found, ours(images))
    assert torch.equal(ours(images[:, :1]), ours(images[:, :1].repeat(1, 3, 1, 1)))
    assert ours.logits(found) is None
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())


def test_fingerprint_follows_the_weights(squares, filled):
    first, _ = build(DinoV2(), squares())
    again, _ = build(DinoV2(), squares())
    assert first.fingerprint == again.fingerprint
    backbone = first.network.model
    nn.init.zeros_(backbone.patches.bias)
    assert DinoV2Extractor(backbone, "other").fingerprint != first.fingerprint


def test_names_of_the_numbers(squares, filled):
    data = squares()
    metrics = SampleQuality(DinoV2(), samples=40, batch_size=20, subsets=3, subset_size=30, full=True)
    metrics.prepare(data, CPU)
    measured = metrics.measure(lambda n, first: data.val.images[first : first + n])
    assert [m.name for m in measured] == metrics.names
    assert metrics.names[:3] == ["fd_dinov2", "kd_dinov2", "fd_infinity_dinov2"]
    assert not [name for name in metrics.names if name.startswith("inception_score")]
    assert measured[0].protocol.extractor == "dinov2-vit-l-14"
    assert measured[0].protocol.extractor_fingerprint


@pytest.mark.parametrize(("encoder", "entry"), MODEL_METADATA.items())
def test_a_commit_is_asked_for_and_not_for_long(squares, monkeypatch, encoder, entry):
    asked = []

    def load(repository, name, **options):
        asked.append((repository, name, socket.getdefaulttimeout()))
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.hub, "load", load)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"metrics=dinov2: {encoder} cannot be had \(RuntimeError: first line\)"):
            build(DinoV2(encoder, timeout=0.5), squares())
    assert asked == [(choices.DINOV2_HUB, entry, 0.5)], "one process asks a dead network once"
    assert len(choices.DINOV2_HUB.partition(":")[2]) == 40
    assert socket.getdefaulttimeout() is None


def test_no_network_says_what_to_do(squares, hub):
    with pytest.raises(UserError) as refusal:
        build(DinoV2(), squares())
    text = str(refusal.value)
    assert "\n" not in text
    call = f"torch.hub.load('{choices.DINOV2_HUB}', 'dinov2_vitl14', skip_validation=True)"
    for told in ("no route to host", call, str(hub), "TORCH_HOME", "metrics=classifier", "metrics=none"):
        assert told in text


def test_damaged_code_is_one_line_too(squares, filled):
    (filled / "hubconf.py").write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match=r"cannot be had \(ModuleNotFoundError: .*nothing_of_that_name"):
        build(DinoV2(), squares())


def test_a_file_is_refused(squares, filled):
    with pytest.raises(UserError, match=r"metrics\.weights=my\.pth: .* takes no file.*Leave metrics\.weights"):
        build(DinoV2(), squares(), "my.pth")
