import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from imago.evaluation import ClassifierExtractor, FrechetDistance, InceptionExtractor
from imago.evaluation.extractors import weights_fingerprint
from imago.evaluation.network import ClassifierNetwork


def classifier(channels: int = 1, seed: int = 0) -> ClassifierExtractor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClassifierExtractor(ClassifierNetwork.for_images(channels, 8, 8, classes=3), "test")


def test_inception_gives_torch_fidelitys_features_and_fid(inception_file):
    theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    ours = InceptionExtractor(inception_file)
    images = torch.randint(0, 256, (24, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[12:] //= 2
    with torch.no_grad():
        expected, expected_logits = theirs(images)
    found = ours(images)
    logits = ours.logits(found)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5 * float(expected_logits.abs().mean()))
    assert not logits.requires_grad
    assert found.dtype == torch.float32
    assert found.shape == (24, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().mean()))

    metric = FrechetDistance(ours)
    metric.update(images[:12], real=False)
    metric.update(images[12:], real=True)
    distance = float(metric.compute())
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, expected.split(12)), verbose=False)
    assert distance == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    # The definition, from 12x12 matrices: torch-fidelity's 2048x2048 ones carry rounding noise with so few images.
    x, y = expected.double().split(12)
    spreads = [(part - part.mean(0)) / 11**0.5 for part in (x, y)]
    trace_root = torch.linalg.svdvals(spreads[0] @ spreads[1].T).sum()
    exact = (x.mean(0) - y.mean(0)).square().sum() + sum(s.square().sum() for s in spreads) - 2 * trace_root
    assert distance == pytest.approx(float(exact), rel=1e-6)

    gray = images[:1, :1]
    assert torch.equal(ours(gray), ours(gray.repeat(1, 3, 1, 1)))


def test_inception_leaves_the_random_state_alone_and_has_nothing_to_train(inception_file):
    before = torch.get_rng_state()
    extractor = InceptionExtractor(inception_file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor.training


@pytest.mark.parametrize("content", [b"nonsense", {"a": 1}, {"weights": torch.ones(3)}, {"code": pytest.raises}])
def test_other_files_are_not_inception(tmp_path, content):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not Inception weights in torch-fidelity's layout"):
        InceptionExtractor(str(path))


def test_only_bytes_pass_the_door():
    extractor = classifier()
    with pytest.raises(TypeError, match=r"float32.*uint8"):
        extractor(torch.rand(2, 1, 8, 8))
    for shape in [(1, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8)]:
        with pytest.raises(ValueError, match="1 or 3"):
            extractor(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="3 channels"):
        extractor(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_folded_classifier_is_the_classifier():
    network = ClassifierNetwork.for_images(3, 32, 48, classes=5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    images = torch.randint(0, 256, (4, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval().embed(images)
    torch.testing.assert_close(ClassifierExtractor(network, "test")(images), expected, rtol=1e-4, atol=1e-5)


def test_features_are_float32_without_gradient_also_under_autocast():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    extractor = classifier()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = extractor(images)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, extractor(images))


def test_fingerprint_follows_the_weights_and_not_their_order():
    assert classifier(seed=0).fingerprint == classifier(seed=0).fingerprint != classifier(seed=1).fingerprint
    a, b = torch.ones(2), torch.zeros(3)
    assert weights_fingerprint({"a": a, "b": b}) == weights_fingerprint({"b": b, "a": a})
    assert weights_fingerprint({"a": a, "b": b}) != weights_fingerprint({"b": a, "a": b})


def test_a_classifiers_logits_are_its_answers():
    extractor = classifier()
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        answers = extractor.network(images)
    assert answers.shape == (6, 3)
    torch.testing.assert_close(extractor.logits(extractor(images)), answers)
