"""Images: two representations and one way between them."""

import json
import math
from typing import Any

import pytest
import torch

from imago.errors import UserError
from imago.images import Batch, ImageSpec, bits_per_dim, normalize, quantize, to_bytes


@pytest.mark.parametrize("levels", range(2, 257))
def test_signal_and_images_are_inverse_on_every_level(levels: int) -> None:
    images = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
    signal = normalize(images, levels)
    assert torch.allclose(signal.flatten(), torch.linspace(-1, 1, levels), atol=1e-6)
    assert torch.equal(quantize(signal, levels), images)


def test_the_ends_are_exact_where_bytes_or_bits_are_concerned() -> None:
    for levels in (2, 256):
        ends = torch.tensor([0, levels - 1], dtype=torch.uint8).reshape(1, 1, 1, 2)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert normalize(ends, levels, dtype).flatten().tolist() == [-1, 1]


def test_to_images_rounds_to_the_nearest_level_and_clips() -> None:
    signal = torch.tensor([-7.0, -1.0, -0.51, -0.49, 0.0, 0.49, 0.51, 1.0, 7.0]).reshape(1, 1, 3, 3)
    assert quantize(signal, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert quantize(signal.double().mul(1 / 127.5).sub(1), 256).flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 7]


def test_to_images_leaves_the_signal_alone() -> None:
    signal = torch.zeros(1, 1, 2, 2)
    quantize(signal, 256)
    assert torch.equal(signal, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("levels", "expected"), [(2, [0, 255]), (3, [0, 128, 255]), (4, [0, 85, 170, 255]), (256, list(range(256)))]
)
def test_to_bytes_spreads_the_levels_over_the_full_range(levels: int, expected: list[int]) -> None:
    images = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
    assert to_bytes(images, levels).flatten().tolist() == expected


def test_bits_per_dim_of_a_uniform_distribution_is_the_number_of_bits() -> None:
    spec = ImageSpec(3, 2, 5, levels=16)
    nats = torch.full((2,), spec.dimensions * math.log(16))  # −log p of any image if all 16^30 are equally likely
    assert bits_per_dim(nats, spec).tolist() == pytest.approx([4, 4])
    assert bits_per_dim(torch.tensor([1.0]), ImageSpec(1, 1, 1)).item() == pytest.approx(1.442695)


def test_spec_says_what_an_image_is() -> None:
    spec = ImageSpec(3, 32, 48, 256, 10)
    assert (spec.shape, spec.dimensions, str(spec)) == ((3, 32, 48), 4608, "3x32x48, 256 levels, 10 classes")
    assert ImageSpec(**spec.as_dict()) == spec
    assert str(ImageSpec(1, 4, 4, 2)) == "1x4x4, 2 levels"


def test_spec_names_its_classes() -> None:
    spec = ImageSpec(1, 8, 8, 256, 3, ["cat", "newt", "dog"], [20, 0, 1])
    assert str(spec) == str(ImageSpec(1, 8, 8, 256, 3))  # fingerprints of data are made from it
    assert (spec.class_names, spec.class_counts) == (("cat", "newt", "dog"), (20, 0, 1))
    assert ImageSpec(**json.loads(json.dumps(spec.as_dict()))) == spec
    assert (spec.trained, spec.class_name(1)) == ((0, 2), "newt")
    old = ImageSpec(1, 8, 8, 256, 3)
    assert (old.trained, old.class_name(1)) == ((0, 1, 2), "1")


@pytest.mark.parametrize(
    ("spec", "kind", "dtype", "text"),
    [
        (ImageSpec(1, 4, 4), "pixels", torch.uint8, "1x4x4, 256 levels"),
        (ImageSpec(1, 4, 4, 64, tokens=True), "tokens", torch.uint8, "1x4x4, 64 tokens"),
        (ImageSpec(1, 4, 4, 1024, tokens=True), "tokens", torch.int32, "1x4x4, 1024 tokens"),
        (ImageSpec(2, 1, 1, 0, embedding=5), "points", torch.float32, "points in R^2, embeddings of 5"),
    ],
)
def test_spec_of_what_is_no_picture(spec: ImageSpec, kind: str, dtype: torch.dtype, text: str) -> None:
    assert (spec.kind, spec.dtype, str(spec)) == (kind, dtype, text)
    assert ImageSpec(**json.loads(json.dumps(spec.as_dict()))) == spec
    images = torch.zeros(2, *spec.shape, dtype=dtype)
    spec.check(images)
    assert torch.equal(quantize(normalize(images, spec.levels), spec.levels), images)
    assert quantize(normalize(images, spec.levels), spec.levels).dtype == dtype
    assert to_bytes(images, spec.levels).dtype == torch.uint8
    with pytest.raises(UserError, match=f"give {str(dtype).removeprefix('torch.')} "):
        spec.check(images.half())
    others = {"pixels", "tokens", "points"} - {kind}
    spec.require([kind], "GAN")
    with pytest.raises(UserError, match=rf"GAN is a model of .* or .*, these are {kind}.*choose other data"):
        spec.require(sorted(others), "GAN")


def test_tokens_outside_the_codebook_are_refused() -> None:
    spec = ImageSpec(1, 1, 2, 1024, tokens=True)
    for token, message in ((1024, "up to 1024 for a model of 1024"), (-1, r"down to -1: give values 0\.\.1023")):
        with pytest.raises(UserError, match=message):
            spec.check(torch.tensor([[[[0, token]]]], dtype=torch.int32))


def test_every_token_survives_normalisation() -> None:
    tokens = torch.arange(2**16, dtype=torch.int32).reshape(1, 1, 256, 256)
    assert torch.equal(quantize(normalize(tokens, 2**16), 2**16), tokens)


def test_a_batch_says_its_labels_only_where_the_condition_is_a_class() -> None:
    images, classes, vectors = torch.zeros(2, 1, 1, 1), torch.tensor([3, 1]), torch.zeros(2, 5)
    assert Batch(images).labels is None
    assert Batch(images, classes).labels is classes
    assert Batch(images, vectors).labels is None
    assert [ImageSpec(1, 1, 1, **key).condition for key in ({}, {"classes": 4}, {"embedding": 5})] == [
        "none",
        "class",
        "embedding",
    ]


@pytest.mark.parametrize(
    ("name", "shown", "folder"),
    [
        ("cat", "cat", "1-cat"),
        ("T-shirt/top", "T-shirt/top", "1-T-shirt_top"),
        ("große Katze", "große Katze", "1-große Katze"),
        ("1", "1", "1"),
        ("10", "10", "1-10"),
        ("..", "..", "1"),
        ("../../etc", "../../etc", "1-_etc"),
        (".hidden", ".hidden", "1-_hidden"),
        ("a\0b", "a?b", "1-a_b"),
        ("a\x1b[2J\nb", "a?[2J?b", "1-a_2J_b"),
        ("\udcff", "?", "1"),
        ("", "", "1"),
        ("con", "con", "1-con"),
        ("x" * 300, "x" * 40, "1-" + "x" * 40),
        ("\\\\server\\x", "\\\\server\\x", "1-_server_x"),
    ],
)
def test_names_of_classes_print_and_stay_in_their_folder(name: str, shown: str, folder: str) -> None:
    spec = ImageSpec(1, 8, 8, 256, 2, ("other", name))
    assert (spec.class_name(1), spec.class_folder(1)) == (shown, folder)
    assert ImageSpec(1, 8, 8, 256, 2).class_folder(1) == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 8), "channels=0: must be at least 1"),
        ((1, 0, 8), "height=0: must be at least 1"),
        ((1, 8, -3), "width=-3: must be at least 1"),
        ((1, 8, 8, 1), r"levels=1: must lie in 2\.\.256, or be 0 for points"),
        ((1, 8, 8, 257), r"levels=257: must lie in 2\.\.256.*tokens=True"),
        ((1, 8, 8, 0), "levels=0: must lie in"),
        ((1, 8, 8, 1, 0, (), (), True), r"levels=1: must lie in 2\.\.16777216$"),
        ((1, 1, 1, 0, 0, (), (), True), "levels=0: must lie in"),
        ((1, 8, 8, 256, 0, (), (), False, -1), "embedding=-1"),
        ((1, 8, 8, 256, 2, (), (), False, 5), "embedding=5: the condition is a class already"),
        ((1, 8, 8, 256, -1), "classes=-1"),
        ((1, 8, 8, 256, 2, ("a",)), "class_names has 1 entries for 2 classes"),
        ((1, 8, 8, 256, 0, (), (3,)), "class_counts has 1 entries for 0 classes"),
        ((1, 8, 8, 256, 2, (), (3, -1)), "class_counts="),
        ((1, 8, 8, 256, 2, (), (0, 0)), "class_counts="),
    ],
)
def test_impossible_specs_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpec(*arguments)
