"""The tables of benchmarks/README.md hold the numbers of the committed results."""

import importlib
import json
import re
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
