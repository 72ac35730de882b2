"""The audit of dependencies: a known vulnerability fails, and without a network it says that nothing was checked."""

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
audit = __import__("audit")

Answer = Callable[[list[dict[str, Any]]], bytes]


@pytest.fixture
def osv() -> Iterator[tuple[str, dict[str, Answer]]]:
    """A server in the place of osv.dev: its address, and what it answers to the questions."""
    behaviour: dict[str, Answer] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = behaviour["answer"](content["queries"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/querybatch", behaviour
    server.shutdown()
    server.server_close()


def results(queries: list[dict[str, Any]], **vulnerable: str) -> bytes:
    found = [vulnerable.get(query["package"]["name"].replace("-", "_")) for query in queries]
    return json.dumps(
        {"results": [{"vulns": [{"id": identifier}]} if identifier else {} for identifier in found]}
    ).encode()


def test_every_locked_version_is_asked_about_and_nothing_else_is_sent(osv: Any, capsys: Any) -> None:
    url, behaviour = osv
    asked: list[dict[str, Any]] = []

    def answer(queries: list[dict[str, Any]]) -> bytes:
        asked.extend(queries)
        return results(queries)

    behaviour["answer"] = answer
    assert audit.main(url) == 0
    assert f"no known vulnerabilities in {len(asked)} versions" in capsys.readouterr().out
    assert {query["package"]["name"] for query in asked} >= {
        "torch",
        "lightning",
        "hydra-core",
        "pillow",
        "uv",
        "torchgan",
    }
    assert {frozenset(query) for query in asked} == {frozenset({"package", "version"})}
    assert {query["package"]["ecosystem"] for query in asked} == {"PyPI"}


def test_a_known_vulnerability_fails_unless_it_is_left_out_with_a_reason(
    osv: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, behaviour = osv
    behaviour["answer"] = lambda queries: results(queries, pillow="GHSA-x", hydra_core="GHSA-y")
    assert audit.main(url) == 1
    said = capsys.readouterr().out
    assert "requirements.lock: pillow" in said
    assert "https://osv.dev/vulnerability/GHSA-x; make lock ARGS=--upgrade" in said
    assert "2 known vulnerabilities" in said
    monkeypatch.setattr(audit, "IGNORED", {"GHSA-x": "no such files are read", "GHSA-y": "not called"})
    assert audit.main(url) == 0
    assert "GHSA-x left out: no such files are read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>sign in</html>", b"[]", b'{"results": []}', b'{"results": 3}', b'{"results": [3]}'],
    ids=["nothing", "a page", "a list", "too few", "a number", "numbers"],
)
def test_without_an_answer_it_says_that_nothing_was_checked(osv: Any, capsys: Any, answer: bytes) -> None:
    url, behaviour = osv
    behaviour["answer"] = lambda queries: answer
    assert audit.main(url) == 0
    assert "could not be asked" in capsys.readouterr().out


def test_without_a_network_it_says_that_nothing_was_checked(capsys: Any) -> None:
    assert audit.main("http://127.0.0.1:9/v1/querybatch") == 0
    said = capsys.readouterr().out
    assert "could not be asked" in said
    assert "versions were not checked" in said


def test_continuous_integration_audits() -> None:
    assert "make audit" in (ROOT / ".ci" / "run").read_text()
