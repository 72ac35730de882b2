import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import at_once
from imago import downloads
from imago.downloads import DownloadError, UnreachableError, download

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DIGEST = f"sha256:{SHA256}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/broken" else CONTENT)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_file_arrives_whole(server, tmp_path):
    seen = []
    target = tmp_path / "weights" / "file.pth"
    download([f"{server}/file"], target, DIGEST, timeout=5.0, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("path", "message"), [("missing", "404|Not Found"), ("broken", "broke off after 3,500 of 7,000 bytes")]
)
def test_a_failed_transfer_leaves_nothing(server, tmp_path, path, message):
    with pytest.raises(DownloadError, match=message) as failure:
        download([f"{server}/{path}"], tmp_path / "file.pth", DIGEST, timeout=5.0)
    assert not isinstance(failure.value, UnreachableError)
    assert not list(tmp_path.iterdir())


def test_wrong_content_is_thrown_away(server, tmp_path):
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256} instead of {'0' * 64}"):
        download([f"{server}/file"], tmp_path / "file.pth", f"sha256:{'0' * 64}", timeout=5.0)
    assert not list(tmp_path.iterdir())


def test_a_dead_address_is_reported(tmp_path):
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        download(["http://127.0.0.1:9/file"], tmp_path / "file.pth", DIGEST, timeout=5.0)


def test_ten_processes_download_once(server, tmp_path):
    target = tmp_path / "file.pth"

    def work():
        download([f"{server}/file"], target, DIGEST, timeout=60.0)
        return target.read_bytes() == CONTENT

    assert at_once(10, work) == [True] * 10
    assert list(tmp_path.iterdir()) == [target]


def test_a_planted_link_is_replaced_and_not_followed(server, tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "file.pth"
    victim.write_text("mine")
    target.symlink_to(victim)
    download([f"{server}/file"], target, DIGEST, timeout=5.0)
    assert victim.read_text() == "mine"
    assert target.read_bytes() == CONTENT
