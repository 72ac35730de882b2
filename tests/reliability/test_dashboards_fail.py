"""Dashboards that break or hang: the run goes on, it is said once, and the fate of the run is that of its training."""

import http.server
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers.logger import Logger
from wandb.sdk import wandb_setup

from helpers import Command, small
from imago import loggers
from imago.errors import UserError
from imago.loggers import Dashboard, WandbRun
from imago.runs import Run
from imago.training.run import train

SIZES = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "max_images=128", "every.log=32"]
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    loggers.silent_hosts.clear()
    yield
    loggers.silent_hosts.clear()
    wandb.teardown()


class Server(http.server.BaseHTTPRequestHandler):
    """A W&B server that answers with a code, or never."""

    code = 200
    released = threading.Event()

    def log_message(self, *arguments: Any) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.code == 0:
            self.released.wait(60)
            return
        body = json.dumps({"errors": [{"message": f"refused with {self.code}"}]}).encode()
        self.send_response(self.code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    """The server that W&B is told to use, with a key configured."""

    class Answering(Server):
        released = threading.Event()

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(loggers, "INIT", 2.0)
    yield Answering
    Answering.released.set()
    listening.shutdown()
    listening.server_close()


def offline_runs(folder: Path) -> int:
    return len(list(folder.glob("wandb/offline-run-*/*.wandb")))


@pytest.mark.parametrize("code", [0, 500, None], ids=["hangs", "broken", "nobody"])
def test_without_an_answer_a_run_is_offline_and_the_next_does_not_ask(
    tmp_path: Path, server: type[Server], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: Any
) -> None:
    server.code = code or 0
    if code is None:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for number, said in enumerate(("Timed out", "did not answer before")):
        began = time.monotonic()
        run = Run(tmp_path / str(number))
        logger = loggers.wandb(run, "x", {}, [], None)
        assert time.monotonic() - began < (15 if number == 0 else 8)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert len(lines) == 1
        assert re.fullmatch(rf"note: wandb: .*{said}.*; this run is offline", lines[0])
        assert (run.summary["wandb_mode"], offline_runs(run.path)) == ("offline", 1)
        assert not list(run.path.glob("wandb/run-*")), "nothing of the attempt is left"
        logger.close(False)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_the_server_refuses_is_refused_before_training(
    script: Command, tmp_path: Path, server: type[Server], code: int
) -> None:
    server.code = code
    found, _, err = script("train", *SIZES, "metrics=none", "trainer=cpu", "data=digits")
    assert found == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: logger.wandb: refused with {code}; mend it, or choose logger.wandb.mode=offline"]
    assert "Traceback" not in err
    assert not list(Path("logs").rglob("summary.json")), "nothing is left of the run"


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"mode": "online"}, KEY, "Timed out"),
        ({"mode": "online"}, None, "no API key is configured"),
        ({}, "short", "API key"),
        ({"project": "a/b"}, None, "project name"),
    ],
)
def test_what_cannot_be_had_is_said(
    tmp_path: Path, server: type[Server], monkeypatch: pytest.MonkeyPatch, settings: Any, key: str | None, message: str
) -> None:
    server.code = 500
    monkeypatch.delenv("WANDB_API_KEY") if key is None else monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(
        UserError, match=rf"^logger\.wandb: .*{message}.*; mend it, or choose logger\.wandb\.mode=offline$"
    ):
        loggers.wandb(Run(tmp_path), "x", {}, [], None, **settings)


class Breaks(Logger):
    """Raises in every method, or hangs in one."""

    name, version = "breaks", ""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.asked: list[str] = []
        self.free = threading.Event()

    def _do(self, what: str) -> None:
        self.asked.append(what)
        if self.how == what:
            self.free.wait(60)
        if self.how == "raises":
            raise RuntimeError("broken\nin two lines")

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None: ...

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        self._do("log_metrics")

    def log_image(self, *arguments: Any, **options: Any) -> None:
        self._do("log_image")

    def finalize(self, status: str) -> None:
        self._do("finalize")

    def close(self, failed: bool) -> None:
        self._do("close")

    def abandon(self) -> None:
        self.asked.append("abandon")
        self.free.set()


@pytest.mark.parametrize("how", ["raises", "log_metrics", "close"])
def test_a_logger_that_raises_or_hangs_is_named_once(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Breaks(how)
    dashboard = Dashboard("mine", lambda: logger, patience=0.2)
    for _ in range(3):
        dashboard.log_metrics({"images_seen": 1})
        dashboard.log_image("samples", [])
    dashboard.close(failed=False)
    (line,) = capsys.readouterr().err.splitlines()
    told = "RuntimeError: broken in two lines" if how == "raises" else "TimeoutError: no answer within 0 seconds"
    assert line == f"note: mine: {told}; the run goes on"
    assert logger.asked[-1] == "abandon"
    assert logger.asked.count("log_metrics") == (1 if how == "log_metrics" else 3)


def test_a_logger_that_cannot_be_made_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    def made() -> Logger:
        raise OSError(28, "No space left on device")

    dashboard = Dashboard("mine", made)
    dashboard.log_metrics({"images_seen": 1})
    dashboard.close(failed=False)
    assert capsys.readouterr().err == "note: mine: No space left on device; the run goes on\n"


def test_of_three_runs_the_service_of_the_middle_one_is_killed_and_the_last_one_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three W&B runs; the fate of each is that of its training, and each trouble is said once."""
    monkeypatch.setattr(loggers, "PATIENCE", 10.0)
    log, rows = WandbRun.log_metrics, [0]
    sent = {"1": signal.SIGKILL, "2": signal.SIGSTOP}

    def disturbed(self: WandbRun, metrics: Any, step: int | None = None) -> None:
        rows[0] += 1
        number = self.run.path.name
        if rows[0] == 2 and number in sent:
            process = wandb_setup.singleton()._connection._proc._process
            os.kill(process.pid, sent[number])
            if sent[number] == signal.SIGKILL:
                process.wait()
        log(self, metrics, step)

    monkeypatch.setattr(WandbRun, "log_metrics", disturbed)
    for number in ("0", "1", "2"):
        rows[0] = 0
        run = train(small(tmp_path, *SIZES, "logger=wandb"), "gan-digits", tmp_path / number)
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert len(notes) == (number != "0"), notes
        assert run.summary["status"] == "completed"
        assert offline_runs(run.path) == 1
        assert len(run.metrics.read_text().splitlines()) == 5
