"""metrics=clip: with a random encoder in the layout of the published files."""

import hashlib
import warnings
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_clip
from torch_fidelity.feature_extractor_clip import CLIPVisual, FeatureExtractorCLIP
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from imago.config import check_node
from imago.data import ImageDataModule
from imago.data.sources import Digits
from imago.errors import UserError
from imago.evaluation import Clip, ClipExtractor, SampleQuality, choices

from .conftest import CPU
from .conftest import extractor_of as build

DEAD = "http://127.0.0.1:9/clip.pt"


def archive(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A TorchScript archive that only holds these tensors: of the published ones, nothing else is read."""
    root = nn.Module()
    for name, value in tensors.items():
        *folders, leaf = name.split(".")
        module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module._modules[folder]
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), path)


def encoder(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a vision transformer of 2 layers, 32x32 pixels and 12 features, in float16, and of a text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIPVisual(12, image_resolution=32, vision_layers=2, vision_width=64, vision_patch_size=16)
        for name, weights in network.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weights, std=0.1)
        text = {"text_projection": torch.randn(8, 12), "positional_embedding": torch.randn(7, 8)}
        text |= {"transformer.resblocks.0.ln_1.weight": torch.randn(8), "logit_scale": torch.ones(())}
    return {name: value.detach().half() for name, value in (network.state_dict() | text).items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    archive(path, encoder())
    return path


def theirs(path: Path) -> FeatureExtractorCLIP:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(path)).eval()


def test_features_are_torch_fidelitys(file):
    images = torch.randint(0, 256, (6, 3, 20, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = torch.get_rng_state()
    ours = ClipExtractor(str(file), "tiny")
    assert torch.equal(torch.get_rng_state(), before)
    found = ours(images)
    assert found.dtype == torch.float32
    assert found.shape == (6, ours.dimensions) == (6, 12)
    assert float(found.std(0).min()) > 0.01, "images can be told apart"
    with torch.no_grad():
        assert torch.equal(found, theirs(file)(images)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found, ours(images))
    assert torch.equal(ours(images[:, :1]), ours(images[:, :1].repeat(1, 3, 1, 1)))
    assert ours.logits(found) is None
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())


def test_fingerprint_is_of_the_image_encoder(file, tmp_path):
    same, other = encoder(), encoder(seed=1)
    same["text_projection"] += 1
    archive(tmp_path / "same.pt", same)
    archive(tmp_path / "other.pt", other)
    first = ClipExtractor(str(file), "tiny").fingerprint
    assert ClipExtractor(str(tmp_path / "same.pt"), "same").fingerprint == first
    assert ClipExtractor(str(tmp_path / "other.pt"), "other").fingerprint != first


def wrong_files(path: Path) -> list[Path]:
    (path / "garbage.pt").write_bytes(b"nonsense")
    torch.save(encoder(), path / "not_scripted.pt")
    archive(path / "no_text.pt", {name: value for name, value in encoder().items() if name != "text_projection"})
    archive(path / "lacks.pt", {name: value for name, value in encoder().items() if "ln_pre" not in name})
    archive(path / "whole.pt", encoder())
    (path / "cut.pt").write_bytes((path / "whole.pt").read_bytes()[:5000])
    return [path / name for name in ("garbage.pt", "not_scripted.pt", "no_text.pt", "lacks.pt", "cut.pt")]


def test_a_wrong_file_gives_one_line(squares, tmp_path):
    data = squares()
    for path in wrong_files(tmp_path):
        with pytest.raises(UserError) as refusal:
            build(Clip(), data, path)
        text = str(refusal.value)
        assert f"metrics.weights={path}: not a CLIP model in OpenAI's TorchScript layout: " in text
        assert "\n" not in text
        assert "metrics=classifier" in text
    with pytest.raises(UserError, match=r"metrics\.weights=.*typo\.pt: there is no such file"):
        build(Clip(), data, tmp_path / "typo.pt")


def test_choices_are_torch_fidelitys_with_their_addresses():
    assert set(get_args(choices.ClipEncoder)) == set(feature_extractor_clip.MODEL_METADATA)
    published = Clip()
    assert published.url == feature_extractor_clip.MODEL_URLS["clip-vit-b-32"]
    assert published.sha256 in published.url
    assert Clip("clip-vit-l-14").sha256 != published.sha256
    node = {"_target_": "imago.evaluation.Clip", "encoder": "clip-vit-b-64"}
    with pytest.raises(UserError, match=r'metrics\.encoder="clip-vit-b-64'):
        check_node(node, "metrics")


@pytest.fixture
def server(file, serve, monkeypatch):
    """Serves the tiny encoder, which takes the place of the published one, and something else."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA["clip-vit-b-32"], "hash", digest)
    return serve({"good.pt": content, "bad.pt": b"tampered with"})


def test_it_is_downloaded_once_and_checked(squares, server, file):
    url, requests = server
    data = squares()
    with pytest.raises(UserError, match=r"metrics=clip: the clip-vit-b-32 weights cannot be had .*SHA-256"):
        build(Clip(url=f"{url}/bad.pt"), data)
    kept = data.directory / "weights" / "clip-vit-b-32.pt"
    assert not kept.exists()
    for _ in range(2):
        extractor, notices = build(Clip(url=f"{url}/good.pt"), data)
        assert extractor.name == "clip-vit-b-32"
        assert extractor.fingerprint == ClipExtractor(str(file), "tiny").fingerprint
        assert "not the published" not in notices
        assert "clip-vit-b-32 takes about" in notices
    assert requests == ["/bad.pt", "/good.pt"]
    kept.write_bytes(b"damaged on disk")
    with pytest.raises(UserError, match=r"clip-vit-b-32\.pt: damaged.*Delete it"):
        build(Clip(url=f"{url}/good.pt"), data)


def test_no_network_says_what_to_do(squares):
    data = squares()
    with pytest.raises(UserError) as refusal:
        build(Clip(url=DEAD), data)
    for told in ("metrics=clip", DEAD, Clip().sha256, str(data.directory), "metrics.weights=PATH", "=none"):
        assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_of_ones_own_is_named_and_told(squares, file):
    extractor, notices = build(Clip(url=DEAD), squares(channels=3), file)
    assert extractor.name == "clip (tiny.pt)"
    assert f"metrics.weights={file}: not the published clip-vit-b-32 weights" in notices


def test_digits_are_measured_as_by_torch_fidelity(tmp_path, file):
    data = ImageDataModule(Digits(), dir=str(tmp_path))
    data.prepare()
    metrics = SampleQuality(Clip(), samples=60, batch_size=25, weights=str(file), subsets=3, subset_size=40, full=True)
    metrics.prepare(data, CPU)
    assert metrics.names[:2] == ["fd_clip", "kd_clip"]
    assert "precision_clip" in metrics.names
    assert not [name for name in metrics.names if name.startswith("inception_score")]
    samples = data.test.images[:60]
    measured = metrics.measure(lambda n, first: samples[first : first + n])
    assert [m.name for m in measured] == metrics.names
    assert measured[0].protocol.extractor == "clip (tiny.pt)"
    assert measured[0].protocol.dimensions == 12
    extractor = theirs(file)
    with torch.no_grad():
        clouds = [extractor(images.expand(-1, 3, -1, -1))[0] for images in (samples, data.training_images())]
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, clouds), verbose=False)
    assert measured[0].value == pytest.approx(fid["frechet_inception_distance"], rel=1e-4)
    assert measured[0].value > 0
