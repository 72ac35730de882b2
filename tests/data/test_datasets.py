"""Data sets by their numbers: in memory, a dataset of PyTorch's, and parts of them."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imago.data import Dataset, ImageDataModule, ImageSet, MapStyle

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (12, 4, 5, 3), np.uint8)
LABELS = RNG.integers(0, 3, 12)


class Items(torch.utils.data.Dataset[Any]):
    """What somebody else has written."""

    def __init__(self, kind: str, condition: Any = None) -> None:
        self.kind, self.conditions = kind, condition
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, k: int) -> Any:
        self.asked.append(k)
        pixels = PICTURES[k]
        image = {
            "picture": lambda: Image.fromarray(pixels),
            "array": lambda: pixels,
            "gray": lambda: Image.fromarray(pixels[..., 0]),
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
        }[self.kind]()
        return image if self.conditions is None else (image, self.conditions[k])


@pytest.mark.parametrize("kind", ["picture", "array", "gray", "tensor"])
def test_items_of_pytorch_become_batches(kind: str) -> None:
    data = MapStyle(Items(kind, [int(label) for label in LABELS]))
    images, labels = data.take(np.array([7, 2, 7]))
    expected = torch.from_numpy(PICTURES[[7, 2, 7]]).permute(0, 3, 1, 2)[:, : 1 if kind == "gray" else 3]
    assert torch.equal(images, expected)
    assert images.dtype == torch.uint8
    assert labels is not None
    assert labels.dtype == torch.int64
    assert labels.tolist() == LABELS[[7, 2, 7]].tolist()
    images[:] = 0  # a copy
    assert torch.equal(data.take(np.array([7, 2, 7])).images, expected)


def test_conditions_of_pytorch() -> None:
    assert MapStyle(Items("array")).take(np.arange(2)).condition is None
    vectors = RNG.standard_normal((12, 5)).astype(np.float32)
    for condition in (vectors, list(torch.from_numpy(vectors))):
        found = MapStyle(Items("array", condition)).take(np.array([3, 1])).condition
        assert torch.equal(found, torch.from_numpy(vectors[[3, 1]]))


def test_labels_that_are_known_are_not_looked_for() -> None:
    items = Items("array", LABELS.tolist())
    assert MapStyle(items).labels.tolist() == LABELS.tolist()
    assert items.asked == list(range(12))
    items.targets, items.asked = LABELS.tolist(), []  # type: ignore[attr-defined]
    assert MapStyle(items).labels.tolist() == LABELS.tolist()
    assert items.asked == []


@pytest.mark.parametrize("whole", [ImageSet, lambda *args: MapStyle(Items("array", LABELS.tolist()))])
def test_parts_of_parts(whole: Any) -> None:
    images, labels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)
    data: Dataset = whole(images, labels)
    assert torch.equal(data.images, images)
    for part, numbers in (
        (data.part(slice(2, 9)), np.arange(2, 9)),
        (data.part(slice(2, 9)).part(slice(-3, None)), np.arange(6, 9)),
        (data.part(torch.tensor([5, 1, 5])).part(slice(None, None, 2)), np.array([5, 5])),
        (data.part(slice(4, 4)), np.arange(0)),
    ):
        assert len(part) == len(numbers)
        assert part.prefetch == data.prefetch
        assert torch.equal(part.images, images[numbers])
        assert torch.equal(part.labels, labels[numbers])
        batches = list(part.batches(2))
        assert [len(batch.images) for batch in batches] == [2] * (len(numbers) // 2) + [1] * (len(numbers) % 2)
        if batches:
            assert torch.equal(torch.cat([batch.images for batch in batches]), images[numbers])


def test_the_data_set_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    images = RNG.integers(0, 256, (400, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "data" / "mine.npz", images=images, labels=RNG.integers(0, 3, 400))
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    data: ImageDataModule = names["data"]
    data.prepare()
    assert str(data.spec) == "3x4x5, 256 levels, 3 classes"
    assert data.description == "mine: train, val = the first 250 and the last 50 images of mine.npz"
    assert torch.equal(data.test.images, torch.from_numpy(images[300:]).permute(0, 3, 1, 2))


class Columns:
    """What Hugging Face's datasets are asked for."""

    column_names: ClassVar = ["img", "label"]
    features: ClassVar = {"label": SimpleNamespace(names=["cat", "dog", "newt"])}

    def __init__(self) -> None:
        self.asked: list[int | str] = []

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, k: int | str) -> Any:
        self.asked.append(k)
        rows = [{"img": Image.fromarray(p), "label": int(n)} for p, n in zip(PICTURES, LABELS, strict=True)]
        return [row[k] for row in rows] if isinstance(k, str) else rows[k]


def test_the_columns_of_hugging_face(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the documentation says, where 5,000 images are held out."""
    parts = {"train": Columns(), "test": Columns()}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: parts))  # type: ignore[arg-type]
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[2].split("```")[0], names)
    data = ImageDataModule(names["Published"](), val=2, batch_size=4, dir=str(tmp_path))
    data.prepare()
    assert str(data.spec) == "3x4x5, 256 levels, 3 classes"
    assert data.spec.class_names == ("cat", "dog", "newt")
    assert set(parts["train"].asked) == {"label", 0}, "no picture is decoded for its label"
    assert torch.equal(data.test.images, torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    assert torch.equal(data.val.take(np.array([1])).labels, torch.from_numpy(LABELS[-1:]))
    assert MapStyle(parts["test"], columns="img").take(np.arange(2)).condition is None


def test_what_is_asked_for_at_once_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imago.data.base._AT_ONCE", 5)

    class Counted(MapStyle):
        sizes: list[int] = []  # noqa: RUF012 - of one test

        def take(self, indices: np.ndarray) -> Any:
            self.sizes.append(len(indices))
            return super().take(indices)

    images: Tensor = Counted(Items("tensor")).images
    assert torch.equal(images, torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    assert max(Counted.sizes) == 5
