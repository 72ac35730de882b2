"""Animations: frames in their order, of one size, few and small enough."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.errors import UserError
from imago.figures.base import Trained, spread, write_animation
from imago.figures.chains import Chains
from imago.figures.training import Training
from imago.figures.trajectories import Trajectories
from imago.images import ImageSpec
from imago.models.gsn import GSN
from imago.rng import PerImageGenerator
from imago.training.run import build_model


def quiet(done: int, total: int) -> None:
    pass


def test_an_animation_has_every_frame_once_and_no_end(tmp_path: Path) -> None:
    frames = [Image.new("L", (1600, 400), value) for value in (0, 120, 255)]
    for name in ("x.gif", "x.webp"):
        write_animation(frames, tmp_path / name)
        with Image.open(tmp_path / name) as moving:
            assert (moving.n_frames, moving.size, moving.info["loop"]) == (3, (800, 200), 0)  # type: ignore[attr-defined]
            for k, value in enumerate((0, 120, 255)):
                moving.seek(k)
                assert abs(int(np.asarray(moving.convert("L"))[100, 400]) - value) < 3
    assert spread(1000, 60)[::59] == [0, 999]
    assert spread(3, 60) == [0, 1, 2]


def test_the_frames_of_a_chain_end_with_samples() -> None:
    torch.manual_seed(0)
    model = GSN(ImageSpec(1, 8, 8), steps=3).eval()
    trained: Any = Trained(model, lambda: pytest.fail("needs no data"))
    frames = Chains(images=2).frames(trained, quiet)
    assert len(frames) == 3
    assert len({frame.size for frame in frames}) == 1
    samples = model.sample(2, generator=PerImageGenerator(0))[:, 0].numpy()
    # The second of two rows, 8 times as large, with margins.
    cells = np.asarray(frames[-1])[-72:, -144:][::8, ::8]
    assert all(np.array_equal(cells[:8, 9 * k : 9 * k + 8], sample) for k, sample in enumerate(samples))


def test_points_move_along_their_paths() -> None:
    config = configuration("model=flow_matching", "data=toy2d", "model/network=mlp", "model.sampler.steps=2")
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    it: Any = Trained(build_model(config, data.spec).eval(), lambda: data)
    figure = Trajectories(samples=5)
    walked = figure._walked(it, quiet)
    moved = [figure._drawing(*walked, k).axes[0].collections for k in range(walked.paths.shape[1])]
    assert [len(lines.get_segments()[0]) for lines, *_ in moved] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    for k, (_, _, points) in enumerate(moved):
        assert np.allclose(points.get_offsets(), walked.paths[:, k])
    assert len(figure.frames(it, quiet)) == 4


def test_training_shows_the_grids_of_the_run_in_their_order(tmp_path: Path) -> None:
    trained: Any = Trained(GSN(ImageSpec(1, 8, 8)), lambda: pytest.fail("needs no data"), tmp_path)
    with pytest.raises(UserError, match=r"there are no grids of samples in .*samples; give the directory of a run"):
        Training().draw(trained, quiet)
    (tmp_path / "samples").mkdir()
    for k in range(5):
        Image.new("L", (100, 50), 50 * k).save(tmp_path / "samples" / f"images-{10**k:010d}.png")
    frames = Training().frames(trained, quiet)
    assert [np.asarray(frame)[-1, -1, 0] for frame in frames] == [0, 50, 100, 150, 200]
    still = np.asarray(Training(snapshots=3).draw(trained, quiet))
    each = frames[0].height + 12
    assert [still[each * k + frames[0].height - 1, 0, 0] for k in range(3)] == [0, 100, 200]
    (tmp_path / "samples" / "images-0000000001.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"images-0000000001\.png cannot be read"):
        Training().draw(trained, quiet)
