"""The tables of benchmarks/README.md hold the numbers of the committed results."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SECTIONS = {
    match[1]: section
    for section in (BENCHMARKS / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]
    if (match := re.search(r"\(`(\w+)\.py`\)", section.splitlines()[0]))
}


def rows_of(section: str) -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def agrees(shown: str, value: float) -> bool:
    """Whether the first number in a cell is the value, rounded to the digits that are shown: 2,020,000 has three."""
    found = re.match(r"[\d,]+(\.\d+)?", shown)
    assert found, shown
    number = found[0].replace(",", "")
    zeros = 0 if "." in number else len(number) - len(number.rstrip("0"))
    step = 10.0**zeros if "." not in number else 10.0 ** -len(number.split(".")[1])
    return abs(float(number) - value) <= 0.5001 * step


COMPARED = [path.stem for path in sorted((BENCHMARKS / "results").glob("*.json")) if path.stem != "scaling"]


@pytest.mark.parametrize("name", COMPARED)
def test_a_table_holds_the_committed_results(name: str) -> None:
    table = rows_of(SECTIONS[name])
    results = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["rows"]
    assert len(table) == len(results)
    for (job, ours, other, ratio, wanted), row in zip(table, results, strict=True):
        assert agrees(ours, row["ours"]), (job, ours, row["ours"])
        assert agrees(other, row["others"]), (job, other, row["others"])
        assert agrees(ratio, row["ratio"]), (job, ratio, row["ratio"])
        assert (float(wanted) if wanted else None) == row["target"], (job, wanted, row["target"])


def test_a_wrong_digit_is_noticed() -> None:
    assert agrees("2,020,000 images/s", 2019685.2)
    assert not agrees("2,030,000 images/s", 2019685.2)
    assert agrees("0.22", 0.2231)
    assert not agrees("0.23", 0.2231)
    assert agrees("18", 17.6)
    assert not agrees("18", 17.2)


def test_the_page_of_costs_holds_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    scaling = importlib.import_module("scaling")
    content = json.loads((BENCHMARKS / "results" / "scaling.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    begin, end = scaling.MARKS
    assert page.split(begin)[1].split(end)[0].strip() == scaling.tables(content)


def test_what_wants_a_gpu_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    words = ["gpu.py", "--rehearse", f"--out={tmp_path}", "speed/vae-float32", "speed/vae-bfloat16"]
    monkeypatch.setattr("sys.argv", words)
    assert gpu.main() == 0
    row = json.loads((tmp_path / "speed" / "vae-bfloat16.json").read_text())
    assert row["flop_per_image"] > 1e4
    assert row["images_per_second"] == pytest.approx(1000 * row["batch_size"] / row["step_ms"])
    assert (tmp_path / "report.md").read_text().count("| vae |") == 2
    done = []
    monkeypatch.setattr(gpu, "speed", lambda name, mode, rehearse: done.append(mode) or row)
    (tmp_path / "speed" / "vae-float32.json").unlink()
    assert gpu.main() == 0
    assert done == ["float32"]


def test_a_part_that_ends_the_process_twice_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    tries = []

    def killed(*_: object) -> None:
        tries.append(1)
        raise SystemExit

    monkeypatch.setattr(gpu, "speed", killed)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--rehearse", f"--out={tmp_path}", "speed/vae-float32"])
    for _ in range(2):
        with pytest.raises(SystemExit):
            gpu.main()
    assert gpu.main() == 0
    assert len(tries) == 2
    assert "ended the process" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_all_that_wants_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", f"--out={tmp_path}"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    kept = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert not [name for name, content in kept.items() if "error" in content]
    assert {name.split("/")[0] for name in kept} == {"tests", "speed", "train", "evaluate"}
    assert "nats" in (tmp_path / "report.md").read_text()
