"""The order of training: what a batch depends on, and what it does not."""

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from imago.data import BatchStream, ImageSet
from imago.data.stream import black_and_white
from imago.errors import UserError
from imago.images import Batch

N, BATCH = 50, 8  # six batches per epoch, two images left over


def numbered(n: int = N) -> tuple[Tensor, Tensor]:
    """Images of 3x4x5 whose pixels tell their number and their column; labels that are the number."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 3, 4, 5)
    images[:, 1] += torch.arange(5, dtype=torch.uint8) * 10
    return images, torch.arange(n)


def take(count: int, **settings: object) -> list[tuple[Tensor, Tensor]]:
    return [
        tuple(batch)
        for batch in islice(BatchStream(ImageSet(*numbered()), **{"batch_size": BATCH, "seed": 0} | settings), count)
    ]


def assert_same(left: list, right: list) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    batches = take(12)
    assert all(images.dtype == torch.uint8 and images.shape == (BATCH, 3, 4, 5) for images, _ in batches)
    assert all(torch.equal(images[:, 0, 0, 0].long(), labels) for images, labels in batches)
    first, second = (torch.cat([labels for _, labels in batches[e : e + 6]]) for e in (0, 6))
    assert len(first.unique()) == len(second.unique()) == 48
    assert not torch.equal(first, second)


def test_order_depends_on_the_seed_alone() -> None:
    assert_same(take(9, flip=True, binarize=True), take(9, flip=True, binarize=True))
    assert not torch.equal(take(1)[0][1], take(1, seed=1)[0][1])


@pytest.mark.parametrize("start", [1, 5, 6, 17])
@pytest.mark.parametrize("treatment", [{}, {"flip": True}, {"flip": True, "binarize": True}])
def test_a_stream_started_at_b_continues_the_one_that_got_there(start: int, treatment: dict) -> None:
    assert_same(take(20, **treatment)[start:], take(20 - start, start=start, **treatment))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_slices_of_all_processes_are_the_batch_of_one(world_size: int) -> None:
    treatment = {"flip": True, "binarize": True}
    ranks = [take(8, rank=rank, world_size=world_size, **treatment) for rank in range(world_size)]
    together = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True)) for batches in zip(*ranks, strict=True)]
    assert_same(together, take(8, **treatment))


def test_flips_mirror_half_of_the_images_left_to_right_and_nothing_else() -> None:
    source, _ = numbered()
    mirrored = 0
    for images, labels in take(240, flip=True):
        plain = source[labels]
        is_plain = (images == plain).flatten(1).all(1)
        assert (is_plain ^ (images == plain.flip(-1)).flatten(1).all(1)).all()
        mirrored += int((~is_plain).sum())
    assert abs(mirrored / (240 * BATCH) - 0.5) < 4 * 0.5 / (240 * BATCH) ** 0.5


def test_flips_do_not_change_the_order() -> None:
    assert [labels.tolist() for _, labels in take(9)] == [labels.tolist() for _, labels in take(9, flip=True)]


def test_dynamic_binarisation_draws_anew_with_the_intensity_as_probability() -> None:
    intensities = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    images = intensities.repeat(1, 1, 1, 500)  # one image of 1x1x3000
    stream = BatchStream(ImageSet(images), batch_size=1, seed=3, binarize=True)
    draws = torch.cat([batch.images for batch in islice(stream, 100)])
    assert draws.unique().tolist() == [0, 1]
    assert not torch.equal(draws[0], draws[1])
    rates = draws.view(100, 500, 6).float().mean((0, 1))
    expected = intensities.float() / 255
    assert rates[0] == 0
    assert rates[-1] == 1  # exactly: white stays white, black stays black
    assert ((rates - expected).abs() <= 4.5 * (expected * (1 - expected) / 50_000).sqrt()).all()


def test_uniform_bytes_below_an_intensity_are_as_many_as_the_intensity() -> None:
    intensities = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    below = np.arange(255, dtype=np.uint8).reshape(1, 1, 1, 255)
    assert torch.equal(black_and_white(intensities, below).sum(-1).flatten(), torch.arange(256))


def test_global_random_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    take(8, flip=True, binarize=True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_the_stream_has_no_length_and_can_be_started_twice() -> None:
    stream = BatchStream(ImageSet(*numbered()), batch_size=BATCH, seed=0)
    with pytest.raises(TypeError):
        len(stream)
    assert_same(list(islice(stream, 3)), list(islice(stream, 3)))


def test_unlabelled_data_has_no_labels() -> None:
    assert next(iter(BatchStream(ImageSet(numbered()[0]), batch_size=4, seed=0))).labels is None


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=51: the training split has only 50 images.*50 or less"):
        BatchStream(ImageSet(*numbered()), batch_size=51, seed=0)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=8: .*between 3 of them.*such as 6"):
        BatchStream(ImageSet(*numbered()), batch_size=8, seed=0, world_size=3)


class Waiting(ImageSet):
    """Says which batch was asked for, and by which thread."""

    def __init__(self, *args: Tensor) -> None:
        super().__init__(*args, prefetch=3)
        self.taken: list[tuple[str, int]] = []
        self.fails_at = -1
        self.has_twelve = threading.Event()

    def take(self, indices: np.ndarray) -> Batch:
        self.taken.append((threading.current_thread().name, int(indices[0])))
        if len(self.taken) == 12:
            self.has_twelve.set()
        if len(self.taken) == self.fails_at:
            raise UserError("the disk is gone")
        return super().take(indices)


def test_a_thread_prepares_the_same_batches_ahead() -> None:
    data = Waiting(*numbered())
    batches = iter(BatchStream(data, batch_size=BATCH, seed=0, flip=True, start=4))
    assert_same([tuple(next(batches)) for _ in range(9)], take(13, flip=True)[4:])
    assert data.has_twelve.wait(60)  # three more than were asked for
    batches.close()
    assert len(data.taken) == 9 + 3
    assert {name for name, _ in data.taken} == {"prefetch_0"}
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch_0"]


def test_an_error_of_the_thread_arrives_with_its_batch() -> None:
    data = Waiting(*numbered())
    data.fails_at = 4
    batches = iter(BatchStream(data, batch_size=BATCH, seed=0))
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(UserError, match="the disk is gone"):
        next(batches)


def test_batches_are_made_where_the_images_are() -> None:
    batch = next(iter(BatchStream(ImageSet(*numbered()).to(torch.device("meta")), batch_size=4, seed=0)))
    assert batch.images.is_meta
    assert batch.condition is not None
    assert batch.condition.is_meta
