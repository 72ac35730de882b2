"""The DataModule: splits, binarisation, fingerprints, evaluation passes and the way into Lightning."""

import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from explicit import Pixels
from imago.data import Dataset, ImageDataModule, ImageSet, Source, Splits, folder_data
from imago.data.base import fixed_permutation
from imago.data.sources import Bars, Digits
from imago.errors import UserError
from imago.images import ImageSpec

CONF = Path(__file__).parents[2] / "conf" / "data"


class Ramps(Source):
    """Labelled RGB ramps of 3x4x6, all intensities; a stand-in that loads at once and counts how often."""

    name = "ramps"
    loads = 0

    def load(self, directory: Path) -> Splits:
        self.loads += 1
        images = torch.arange(40 * 72).remainder(256).to(torch.uint8).view(40, 3, 4, 6)
        part = lambda a, b: ImageSet(images[a:b], torch.arange(a, b) % 4)  # noqa: E731
        return Splits(part(0, 20), part(20, 30), part(30, 40), ("a", "b", "c", "d"), "20, 10, 10")


def prepared(source: Source | None = None, **settings: object) -> ImageDataModule:
    data = ImageDataModule(source or Ramps(), **{"batch_size": 5} | settings)
    data.prepare()
    data.endless = True
    return data


def attach(data: ImageDataModule, batches: int = 0, **trainer: object) -> None:
    """Give it a trainer whose model has seen some batches."""
    model = Pixels(data.spec)
    model.state.batches = batches
    defaults = {"lightning_module": model, "global_rank": 0, "world_size": 1, "strategy": None}
    data.trainer = SimpleNamespace(**defaults | trainer)


def test_prepare_reads_once_and_gives_the_spec() -> None:
    source = Ramps()
    data = prepared(source)
    data.prepare_data()
    data.setup("fit")
    assert source.loads == 1
    assert data.spec == ImageSpec(3, 4, 6, 256, 4, "abcd", (5, 5, 5, 5))
    assert (data.name, data.description) == ("ramps", "ramps: 20, 10, 10")


def test_threshold_makes_two_levels_everywhere() -> None:
    raw, data = prepared(), prepared(binarize="threshold")
    assert data.spec.levels == 2
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(data, split).images, (getattr(raw, split).images >= 128).to(torch.uint8))
    assert torch.equal(data.training_images(), data.train.images)
    assert "white above 127" in data.description


def test_dynamic_draws_evaluation_once_and_training_anew() -> None:
    data, again = prepared(binarize="dynamic"), prepared(binarize="dynamic", seed=7)
    assert data.spec.levels == 2
    assert data.train.images.max() == 255  # intensities, to be drawn from
    for images in (data.val.images, data.test.images, data.training_images()):
        assert images.unique().tolist() == [0, 1]
    for split in ("val", "test"):  # one draw for every run, whatever its seed
        assert torch.equal(getattr(data, split).images, getattr(again, split).images)
    assert torch.equal(data.training_images(), again.training_images())
    assert torch.equal(next(data.batches("train", 20)).images, data.training_images())
    raw = prepared()
    assert torch.equal(data.val.images[raw.val.images == 255], torch.ones_like(data.val.images[raw.val.images == 255]))
    batches = iter(data.train_dataloader())
    first_epoch, second_epoch = (torch.cat([next(batches).images for _ in range(4)]) for _ in range(2))
    assert first_epoch.unique().tolist() == [0, 1]
    assert first_epoch.sum() != second_epoch.sum()


def test_binarising_what_is_binary_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.binarize=dynamic: bars has 2 levels.*data\.binarize=null"):
        prepared(Bars(), binarize="dynamic")


def test_a_batch_larger_than_the_training_split_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=21: the training split has only 20 images"):
        prepared(batch_size=21)


def test_evaluation_passes_are_in_order_and_complete() -> None:
    data = prepared(flip=True)
    batches = list(data.batches("val", 4))
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), data.val.images)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.val.labels)
    assert all(batch.labels is None for batch in prepared(Bars()).batches("test", 8))


def test_fingerprints_tell_data_and_treatment_apart_but_not_batches_or_seeds() -> None:
    same = {prepared(**settings).fingerprint for settings in ({}, {"batch_size": 7}, {"seed": 3}, {"flip": True})}
    assert len(same) == 1
    others = [prepared(binarize="threshold"), prepared(binarize="dynamic"), prepared(Digits()), prepared(Bars())]
    changed = prepared()
    changed.train.images[3, 2, 1, 0] += 1
    relabelled = prepared()
    relabelled.train.labels[0] += 1
    assert len(same | {data.fingerprint for data in (*others, changed, relabelled)}) == 7
    assert len(same.pop()) == 12


def test_training_continues_at_the_position_of_the_model() -> None:
    data = prepared(flip=True, seed=4)
    whole = iter(data.train_dataloader())
    for _ in range(6):
        next(whole)
    attach(data, batches=6)
    continued = iter(data.train_dataloader())
    for _ in range(5):
        expected, found = next(whole), next(continued)
        assert torch.equal(expected.images, found.images)
        assert torch.equal(expected.labels, found.labels)


def test_processes_share_the_batch() -> None:
    data = prepared(batch_size=6)
    whole = next(iter(data.train_dataloader()))
    parts = []
    for rank in range(2):
        attach(data, global_rank=rank, world_size=2)
        parts.append(next(iter(data.train_dataloader())).images)
    assert torch.equal(torch.cat(parts), whole.images)


def test_on_device_moves_the_training_images_to_the_root_device() -> None:
    data = prepared(on_device=True)
    attach(data, strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert data.train_dataloader().data.images.is_meta
    assert not data.train.images.is_meta


class Numbered(Source):
    """Thirty labelled images to train on that are 0, 1, 2, ..., of which three are held out unless asked otherwise."""

    name = "numbered"
    treatment: dict[str, object] = {}  # noqa: RUF012 - changed by no one

    def load(self, directory: Path) -> Splits:
        whole = ImageSet(torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1), torch.arange(30) % 2)
        return Splits(whole, 3, whole.part(slice(5)), ("even", "odd"), "images of those", **self.treatment)


@pytest.mark.parametrize(
    ("val", "held_out", "description"),
    [
        (None, 3, "numbered: train, val = the first 27 and the last 3 images of those"),
        (10, 10, "numbered: train, val = the first 20 and the last 10 images of those"),
        (0, 0, "numbered: train = all 30 images of those"),
    ],
)
def test_the_last_images_are_held_out_as_many_as_asked_for(val: int | None, held_out: int, description: str) -> None:
    data = prepared(Numbered(), val=val)
    assert data.description == description
    assert data.train.images.flatten().tolist() == list(range(30 - held_out))
    assert data.val.images.flatten().tolist() == list(range(30 - held_out, 30))
    assert data.val.images.shape[1:] == (1, 1, 1)
    assert (len(data.test), sum(data.spec.class_counts)) == (5, 30 - held_out)
    assert data.splits["val"]["images"] == held_out


def test_the_held_out_images_are_part_of_what_the_data_are() -> None:
    every = [prepared(Numbered(), val=val) for val in (None, 3, 0, 4)]
    assert every[0].identity == every[1].identity
    assert len({json.dumps(data.identity) for data in every}) == 3


def test_nobody_holds_everything_out() -> None:
    with pytest.raises(UserError, match=r"data\.val=30: numbered has 30 images to train on; hold out fewer"):
        prepared(Numbered(), val=30)
    with pytest.raises(UserError, match=r"data\.val=0: bars has validation images of its own; leave data\.val=null"):
        prepared(Bars(), val=0)


@pytest.mark.parametrize("binarize", [None, "threshold", "dynamic"])
def test_data_that_are_not_in_memory_are_the_same_data(binarize: str | None) -> None:
    class Slow(Dataset):
        def __init__(self, inner: ImageSet) -> None:
            self.inner = inner

        def __len__(self) -> int:
            return len(self.inner)

        take = lambda self, indices: self.inner.take(indices)  # noqa: E731

    class Slowly(Numbered):
        def load(self, directory: Path) -> Splits:
            splits = super().load(directory)
            return replace(splits, train=Slow(splits.train), test=Slow(splits.test))

    there, slow = (prepared(source, binarize=binarize, val=4) for source in (Numbered(), Slowly()))
    assert slow.spec == there.spec
    assert slow.identity == there.identity
    assert torch.equal(slow.training_images(), there.training_images())
    for split in ("train", "val", "test"):
        for a, b in zip(slow.batches(split, 4), there.batches(split, 4), strict=True):
            assert all(map(torch.equal, a, b))
    for a, b in islice(zip(slow.train_dataloader(), there.train_dataloader(), strict=True), 9):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    ("treatment", "settings", "message"),
    [
        ({"tokens": True}, {"binarize": "dynamic"}, r"data\.binarize=dynamic: numbered has tokens"),
        ({"tokens": True}, {"flip": True}, r"data\.flip=true: numbered has tokens, which have no mirror image"),
        ({"levels": 0}, {"flip": True}, r"data\.flip=true: numbered has points"),
        ({"levels": 512, "tokens": True}, {}, r"images are torch\.uint8.*give int32"),
    ],
)
def test_what_cannot_be_done_to_the_data_is_refused(treatment: dict, settings: dict, message: str) -> None:
    source = Numbered()
    source.treatment = treatment
    with pytest.raises(UserError, match=message):
        prepared(source, **settings)


def test_embeddings_become_the_condition() -> None:
    class Described(Source):
        name = "described"

        def load(self, directory: Path) -> Splits:
            whole = ImageSet(torch.zeros(9, 2, 1, 1), torch.arange(18.0).view(9, 2))
            return Splits(whole, 3, whole, (), "of those", levels=0)

    data = prepared(Described())
    assert (str(data.spec), data.spec.condition) == ("points in R^2, embeddings of 2", "embedding")
    batch = next(iter(data.train_dataloader()))
    assert batch.condition.shape == (5, 2)
    assert batch.labels is None


def test_the_split_is_the_same_for_ever() -> None:
    assert fixed_permutation(10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_configuration_builds_its_data(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path))
    config = OmegaConf.merge({"seed": 11}, {"data": OmegaConf.load(file)})
    if file.stem in ("folder", "stream"):
        config.data.path = str(tmp_path)
    data = instantiate(config.data, _convert_="all")
    assert isinstance(data, ImageDataModule)
    assert data.seed == 11
    assert data.directory == tmp_path
    assert data.flip == (file.stem in ("cifar10", "imagenet32"))
    named = {"folder": tmp_path.name, "stream": tmp_path.name, "toy1d": "mixture", "toy2d": "eight_gaussians"}
    assert data.name == named.get(file.stem, file.stem)


def test_the_data_directory_is_the_default_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGO_DATA_DIR", raising=False)
    config = OmegaConf.merge({"seed": 0}, {"data": OmegaConf.load(CONF / "mnist.yaml")})
    assert instantiate(config.data).directory == Path("data")


def test_a_folder_without_a_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.path is missing.*data\.path=FOLDER"):
        folder_data(None)


@pytest.mark.skipif(
    not (Path(os.environ.get("IMAGO_DATA_DIR", "/nonexistent")) / "cifar-10-batches-bin").exists(),
    reason="needs IMAGO_DATA_DIR with cifar-10-batches-bin",
)
def test_real_data_is_fingerprinted_in_no_time(data_dir: Path) -> None:
    config = OmegaConf.merge({"seed": 0}, {"data": OmegaConf.load(CONF / "cifar10.yaml")})
    data = instantiate(config.data, dir=str(data_dir))
    data.prepare()
    assert str(data.spec) == "3x32x32, 256 levels, 10 classes"
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert json.dumps(data.fingerprint)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (64, 3, 32, 32)
    assert batch.labels is not None
