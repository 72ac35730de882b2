import pytest
import torch

from imago.errors import UserError
from imago.evaluation.cache import Cache, check_tensors


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def test_gives_back_what_was_saved(data):
    Cache(data).save("x.pt", {"mean": torch.arange(3.0), "count": 3})
    content = Cache(data).load("x.pt")
    assert content["count"] == 3
    assert torch.equal(content["mean"], torch.arange(3.0))
    assert [path.name for path in (data / "cache").iterdir()] == ["x.pt"]  # no temporary file is left


def flipped(content):
    """One bit of the numbers, which the archive's structure does not feel."""
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b"nonsense", lambda b: b[: len(b) // 2], lambda b: b[:-9], flipped]
)
def test_a_damaged_file_counts_as_missing_and_is_said(data, damage, capsys):
    Cache(data).save("x.pt", {"mean": torch.arange(1000.0)})
    path = data / "cache" / "x.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert Cache(data).load("x.pt") is None
    assert f"{path}: is damaged" in capsys.readouterr().err


def test_content_that_cannot_be_used_counts_as_damaged(data, capsys):
    expected = {"mean": (torch.float32, (3,))}
    for content, reason in (
        ({}, "mean is no torch.float32 of shape (3,)"),
        ({"mean": torch.zeros(2)}, "mean is no torch.float32 of shape (3,)"),
        ({"mean": torch.zeros(3).double()}, "mean is no torch.float32 of shape (3,)"),
        ({"mean": torch.tensor([0, 1, torch.nan])}, "mean has numbers that are not finite"),
    ):
        Cache(data).save("x.pt", content)
        assert Cache(data).load("x.pt", lambda found: check_tensors(found, expected)) is None
        assert f"x.pt: is damaged ({reason}); computed anew\n" in capsys.readouterr().err


def test_a_file_that_would_run_code_is_not_loaded(data):
    path = Cache(data).place("x.pt")
    torch.save({"mean": pytest.raises}, path)
    assert Cache(data).load("x.pt") is None


def test_a_missing_data_directory_is_not_created(data):
    missing = data / "typo"
    Cache(missing).save("x.pt", {"count": 1})
    assert not missing.exists()
    assert Cache(missing).load("x.pt") == {"count": 1}


def test_a_read_only_data_directory_is_stepped_over(data, monkeypatch, capsys):
    (data / "cache").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: "logs" in str(path))  # a superuser may write anywhere
    cache = Cache(data)
    cache.save("x.pt", {"count": 1})
    assert not list((data / "cache").iterdir())
    assert cache.load("x.pt") == {"count": 1}
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"data\.dir=.*neither"):
        cache.place("y.pt")
    cache.save("y.pt", {"count": 1})  # a measurement is not lost for that
    assert "y.pt cannot be kept for the next run: data.dir=" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(data, monkeypatch, capsys):
    cache = Cache(data)
    cache.save("x.pt", {"count": 1})

    def broken(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", broken)
    cache.save("x.pt", {"count": 2})
    assert "x.pt cannot be kept for the next run: disk full" in capsys.readouterr().err
    assert cache.load("x.pt") == {"count": 1}
    assert len(list((data / "cache").iterdir())) == 1


def test_a_planted_link_is_not_followed(data):
    victim = data / "victim"
    victim.write_text("mine")
    path = Cache(data).place("x.pt")
    path.symlink_to(victim)
    Cache(data).save("x.pt", {"count": 1})
    assert victim.read_text() == "mine"
    assert Cache(data).load("x.pt") == {"count": 1}
