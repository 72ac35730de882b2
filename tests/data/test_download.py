"""Downloads from a server of this process: what arrives, what is refused, what the user reads."""

import gzip
import hashlib
import io
import resource
import signal
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from helpers import at_once
from imago import downloads
from imago.data.download import Download, fetch
from imago.data.sources import CIFAR10, MNIST, cifar10, mnist
from imago.errors import UserError

CONTENT = bytes(range(256)) * 3000


class Server:
    """Serves ``files`` by path; the first ``breaks`` answers stop half-way. ``requests`` are the paths asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.breaks = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                body = server.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if server.breaks:
                    server.breaks -= 1
                    body = body[: len(body) // 2]
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def dead_url() -> str:
    """An address that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def published(*urls: str, content: bytes = CONTENT) -> Download:
    return Download("file.bin", urls, len(content), hashlib.md5(content).hexdigest())


def test_a_file_arrives_whole_and_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT
    wanted = published(f"{server.url}/file.bin")
    for _ in range(2):
        assert fetch(wanted, tmp_path, instead="").read_bytes() == CONTENT
    assert server.requests == ["/file.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_broken_transfer_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT
    server.breaks = 2
    assert fetch(published(f"{server.url}/file.bin"), tmp_path, instead="").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_transfer_that_always_breaks_ends_with_the_bytes_received(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT
    server.breaks = 9
    with pytest.raises(UserError, match=r"broke off after 384,000 of 768,000 bytes"):
        fetch(published(f"{server.url}/file.bin"), tmp_path, instead="")
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_answers_for_a_dead_one(server: Server, dead_url: str, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT
    wanted = published(f"{dead_url}/file.bin", f"{server.url}/gone", f"{server.url}/file.bin")
    assert fetch(wanted, tmp_path, instead="").exists()


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = b"something else"
    wanted = published(f"{server.url}/file.bin")
    with pytest.raises(
        UserError, match=rf"14 bytes of MD5 {hashlib.md5(b'something else').hexdigest()} instead of {wanted.md5}"
    ):
        fetch(wanted, tmp_path, instead="")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_that_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"half")
    with pytest.raises(UserError, match=r"file\.bin: has 4 bytes, MD5 .*, expected 768,000 bytes, MD5 .*Delete it"):
        fetch(published("http://127.0.0.1:9/"), tmp_path, instead="")


def test_a_dead_network_ends_with_what_to_put_where(dead_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        CIFAR10(url=f"{dead_url}/cifar-10-binary.tar.gz").load(tmp_path)
    message = str(caught.value)
    for part in (
        f"{tmp_path / 'cifar-10-binary.tar.gz'} is missing",
        f"Get {dead_url}/cifar-10-binary.tar.gz (170,052,171 bytes, MD5 c32a1d4ab5d03f1284b67883e8d87530)",
        f"so that {tmp_path / 'cifar-10-batches-bin' / 'data_batch_1.bin'} exists",
        "set data.dir",
    ):
        assert part in message
    with pytest.raises(UserError) as caught:
        MNIST(url=dead_url).load(tmp_path)
    message = str(caught.value)
    raw = tmp_path / "MNIST" / "raw"
    assert f"data.dir={tmp_path}: {raw / 'train-images-idx3-ubyte.gz'} is missing" in message
    assert "(9,912,422 bytes, MD5 f68b3c2dcbeaaa9fbdd348bbdeb94873)" in message
    for other in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        assert f"and likewise {other}" in message


def packed_cifar10() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
            content = bytes(20 * 3073)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("by_hand", [False, True])
def test_cifar10_is_fetched_and_unpacked(
    by_hand: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed_cifar10()
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    name = "cifar-10-binary.tar.gz"
    monkeypatch.setattr(cifar10, "_ARCHIVE", Download(name, (), len(archive), hashlib.md5(archive).hexdigest()))
    if by_hand:
        (tmp_path / name).write_bytes(archive)
    else:
        server.files[f"/{name}"] = archive
    source = CIFAR10(url=f"{server.url}/{name}")
    assert len(source.load(tmp_path).train) == 100
    assert len(source.load(tmp_path).test) == 20
    assert len(server.requests) == (0 if by_hand else 1)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_ten_processes_fetch_and_unpack_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = packed_cifar10()
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    name = "cifar-10-binary.tar.gz"
    monkeypatch.setattr(cifar10, "_ARCHIVE", Download(name, (), len(archive), hashlib.md5(archive).hexdigest()))
    server.files[f"/{name}"] = archive
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / ".data_batch_1.bin.0.unfinished").write_bytes(b"half")  # left by a kill
    source = CIFAR10(url=f"{server.url}/{name}")
    assert at_once(10, lambda: len(source.load(tmp_path).train) == 100) == [True] * 10, capfd.readouterr().err
    assert len(server.requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]
    assert not list((tmp_path / "cifar-10-batches-bin").glob(".*"))


def test_more_than_was_promised_is_not_written(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT + b"x" * 2**20
    with pytest.raises(UserError, match="sends more than 768,000 bytes"):
        fetch(published(f"{server.url}/file.bin"), tmp_path, instead="")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/file.bin"] = CONTENT
    small = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, small[1]))
    try:
        with pytest.raises(
            UserError, match=r"data\.dir=.* cannot be written \(File too large\); choose another place, or make room"
        ):
            fetch(published(f"{server.url}/file.bin"), tmp_path, instead="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, small)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_mnist_fetches_only_what_is_missing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = lambda *shape: b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()  # noqa: E731
    plain = [header(60, 28, 28) + bytes(60 * 784), header(60) + bytes(60), header(10, 28, 28) + bytes(7840)]
    plain.append(header(10) + bytes(10))
    names = [name for name, _, _ in mnist.MNIST.files]
    packed = [gzip.compress(content) for content in plain]
    files = tuple((n, len(p), hashlib.md5(p).hexdigest()) for n, p in zip(names, packed, strict=True))
    monkeypatch.setattr(mnist.MNIST, "files", files)
    monkeypatch.setattr(mnist, "COUNTS", (60, 10))
    server.files = {f"/mirror/{name}": content for name, content in zip(names, packed, strict=True)}
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / names[0].removesuffix(".gz")).write_bytes(plain[0])
    assert len(MNIST(url=f"{server.url}/mirror/").load(tmp_path).train) == 60
    assert server.requests == [f"/mirror/{name}" for name in names[1:]]


def test_only_the_default_directory_is_created(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="could not be downloaded"):
        MNIST(url=server.url).load(Path("data"))
    assert (tmp_path / "data").is_dir()
