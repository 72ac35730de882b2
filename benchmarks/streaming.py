"""Shards against images in memory, and against the readers of other formats: training images per second.

All hold the same noise, 64x64 and 256x256 RGB, as they are, without compression; batches of 64. "A step of 20 ms" is of
that length on the clock, spent in matrix products between two batches; "alone" is nothing but batches. What was written
is in the page cache, except in the rows "cold", before which the kernel is told to drop these files
(``posix_fadvise``; the host of a virtual machine may have them still).

The others are litdata, MosaicML streaming, WebDataset, and wids, which reads WebDataset's files by number. "By number"
takes 64 random images, one by one; "loader" is the library's own, shuffled, with 0 or 1 worker processes, the better
(MosaicML's with none). They pin versions that are not ours, so they are installed apart:

    .venv/uv/bin/uv pip install --python .venv/bin/python --target .venv/streaming --group streaming
    PYTHONPATH=.venv/streaming .venv/bin/python benchmarks/streaming.py
"""

import importlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imago.data import BatchStream, Dataset, ImageSet
from imago.data.prepare import prepare
from imago.data.shards import ShardedImages
from side_by_side import Row, Timing, alternate, report

BATCH = 64
BYTES = 250_000_000  # of images a side
STEP = 0.020  # seconds
Side = Callable[[], object]


def working() -> Side:
    """Matrix products until 20 ms have passed, however busy the machine is."""
    a = torch.randn(256, 256)

    def step() -> None:
        end = time.perf_counter() + STEP
        while time.perf_counter() < end:
            a @ a

    return step


def stepping(data: Dataset, work: Side | None) -> Side:
    """Takes the next training batch, flipped, and works."""
    stream = iter(BatchStream(data, batch_size=BATCH, seed=0, flip=True))

    def side() -> None:
        next(stream)
        if work is not None:
            work()

    return side


def again(loader: Any) -> Side:
    """Takes the next batch of a loader, which begins anew at its end."""
    batches = cycle([None])

    def endless() -> Iterator[Any]:
        for _ in batches:
            yield from loader

    stream = endless()
    return lambda: next(stream)


def by_number(item: Callable[[int], np.ndarray], n: int) -> Side:
    """Takes 64 random images."""
    random = np.random.default_rng(0)
    return lambda: torch.from_numpy(np.stack([item(int(k)) for k in random.integers(0, n, BATCH)]))


def litdata(images: np.ndarray, folder: Path) -> dict[str, Side]:
    library: Any = importlib.import_module("litdata")
    writer_module: Any = importlib.import_module("litdata.streaming.writer")

    writer = writer_module.BinaryWriter(str(folder), chunk_bytes=2**26)
    for k, image in enumerate(images):
        writer.add_item(k, {"image": torch.from_numpy(image), "label": k % 10})
    writer.done()
    writer.merge()
    data = library.StreamingDataset(str(folder), shuffle=True)
    loaders = [library.StreamingDataLoader(data, batch_size=BATCH, num_workers=w) for w in (0, 1)]
    sides = {f"litdata loader {w}": again(loader) for w, loader in enumerate(loaders)}
    return {"litdata by number": by_number(lambda k: data[k]["image"].numpy(), len(images)), **sides}


def mosaic(images: np.ndarray, folder: Path) -> dict[str, Side]:
    sys.path = [place for place in sys.path if Path(place) != Path(__file__).parent]  # this file has the library's name
    library: Any = importlib.import_module("streaming")
    columns = {"image": f"ndarray:uint8:{','.join(map(str, images.shape[1:]))}", "label": "int"}
    with library.MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"]) as writer:
        for k, image in enumerate(images):
            writer.write({"image": image, "label": k % 10})
    data = library.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loaders = [library.StreamingDataLoader(data, batch_size=BATCH, num_workers=0)]
    sides = {f"MosaicML loader {w}": again(loader) for w, loader in enumerate(loaders)}
    return {"MosaicML by number": by_number(lambda k: data[k]["image"], len(images)), **sides}


def by_tar(images: np.ndarray, folder: Path) -> dict[str, Side]:
    webdataset: Any = importlib.import_module("webdataset")
    wids: Any = importlib.import_module("wids")

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=2**26, verbose=0) as writer:
        for k, image in enumerate(images):
            writer.write({"__key__": f"{k:08d}", "npy": image, "cls": k % 10})
    files = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(files, shardshuffle=len(files), empty_check=False).shuffle(1000).decode()
    tuples = data.to_tuple("npy", "cls").batched(BATCH)
    loaders = [webdataset.WebLoader(tuples, batch_size=None, num_workers=w) for w in (0, 1)]
    counts = [sum(1 for _ in webdataset.WebDataset([file], shardshuffle=False)) for file in files]
    listed = [{"url": file, "nsamples": n} for file, n in zip(files, counts, strict=True)]
    numbered = wids.ShardListDataset(listed, cache_dir=str(folder / "cache"), keep=True)
    return {
        "wids by number": by_number(lambda k: numbered[k][".npy"], len(images)),
        **{f"WebDataset loader {w}": again(loader) for w, loader in enumerate(loaders)},
    }


def cold(name: str, shards: Path, n: int) -> float:
    """Seconds for a batch of random images of files that are not in the page cache."""
    data, random, seconds = ShardedImages(shards), np.random.default_rng(1), []
    for _ in range(10):
        for file in shards.glob("*.arrow"):
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        began = time.perf_counter()
        data.take(random.integers(0, n, BATCH))
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def rows(side: int, folder: Path, work: Side) -> list[Row]:
    name, n = f"{side}x{side}", BYTES // (3 * side * side)
    images = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(n) % 10)
    prepare(str(folder / "images.npz"), folder / "shards")
    (folder / "images.npz").unlink()
    sharded, memory = ShardedImages(folder / "shards"), ImageSet(torch.from_numpy(images), torch.arange(n) % 10)
    found = []

    def row(job: str, ours: Timing, other: str, theirs: Timing, target: float | None = None) -> Row:
        speeds = BATCH / ours.seconds, ours.threads, other, BATCH / theirs.seconds, theirs.threads
        return Row(f"{name} {job}", "images/s", *speeds, target)

    for job, between, target in ((f"a step of {STEP * 1000:.0f} ms", work, 0.8), ("alone", None, None)):
        timings = alternate(
            {"ours": stepping(sharded, between), "memory": stepping(memory, between)}, steps=20, rounds=9
        )
        found.append(row(job, timings["ours"], "in memory", timings["memory"], target))
    out_of_memory = alternate({"memory": partial(memory.take, np.arange(BATCH))}, steps=20, rounds=5)["memory"]
    found.append(row("cold", Timing(cold(name, folder / "shards", n), 1), "in memory", out_of_memory))
    for kind in (litdata, mosaic, by_tar):
        sides = kind(images, folder / kind.__name__)
        timings = alternate({"ours": stepping(sharded, None), **sides}, steps=3, rounds=5)
        best: dict[str, Timing] = {}
        for key, timing in timings.items():
            known = key.rstrip(" 01")
            best[known] = min(best.get(known, timing), timing, key=lambda t: t.seconds)
        mine = best.pop("ours")
        found += [row("alone", mine, key, timing) for key, timing in best.items()]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    work = working()
    measured: list[Row] = []
    for side in (64, 256):
        with tempfile.TemporaryDirectory() as folder:
            measured += rows(side, Path(folder), work)
    report("streaming", measured)
    sys.stdout.flush()
    os._exit(0)  # some of the others leave processes that nothing ends
