"""Every model computes what it computed before, and a run that was cut and continued computes the same to the last bit.

After a change that was meant to change numbers: `make numerics`, and say so in the commit and in CHANGELOG.md.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import numerics
from helpers import TINY
from imago.checkpoints import read
from imago.runs import Run
from test_resume import assert_equal, rows

EXPECTED: dict[str, Any] = json.loads(numerics.EXPECTED.read_text())
# Other instruction sets of a processor (ATEN_CPU_CAPABILITY=default, avx2) moved no number by more than 1.3e-6.
CLOSE = 1e-5
REMEDY = "if that was meant, `make numerics` writes the new numbers"


def assert_expected(case: str, run: Run) -> None:
    found, expected = numerics.result_of(run.path), EXPECTED[case]
    told = {**{f"update {n}": row for n, row in found["rows"].items()}, "measured": found["measured"]}
    known = {**{f"update {n}": row for n, row in expected["rows"].items()}, "measured": expected["measured"]}
    for where, row in known.items():
        assert told[where].keys() == row.keys(), f"{case}, {where}: other numbers are logged; {REMEDY}"
        for name, value in row.items():
            assert told[where][name] == pytest.approx(value, rel=CLOSE, abs=CLOSE * 1e-2), (
                f"{case}, {where}: {name} was {value} and is {told[where][name]}; {REMEDY}"
            )
    drawn, before = bytes.fromhex(found["samples"]), bytes.fromhex(expected["samples"])
    assert len(drawn) == len(before)
    moved = sum(abs(a - b) > 1 for a, b in zip(drawn, before, strict=True))  # a draw at the edge may fall either way
    assert moved <= len(before) // 100, f"{case}: {moved} of {len(before)} sampled values are others; {REMEDY}"


def test_the_numbers_are_those_of_the_cases() -> None:
    assert list(EXPECTED) == list(numerics.CASES), "run `make numerics`"
    assert set(TINY) == {path.stem for path in Path(numerics.__file__).parents[2].glob("conf/model/*.yaml")}


@pytest.mark.parametrize("case", [case for case in numerics.CASES if case not in TINY])
def test_numbers_do_not_change_unasked(case: str, tmp_path: Path) -> None:
    assert_expected(case, numerics.run_case(case, tmp_path))


@pytest.mark.parametrize("model", TINY)
def test_numbers_do_not_change_unasked_nor_by_a_stop(model: str, tmp_path: Path) -> None:
    whole = numerics.run_case(model, tmp_path / "whole")
    assert_expected(model, whole)
    first = numerics.run_case(model, tmp_path / "cut", "max_updates=5")
    torch.manual_seed(12345)  # whatever happened in between must not matter
    second = numerics.run_case(model, tmp_path / "cut", "resume=auto")
    assert second.path == first.path
    one, other = read(whole.last), read(second.last)
    for checkpoint in (one, other):
        del checkpoint["random"]["python"]  # beartype, which checks types while tests run, draws from it
    for key in ("state_dict", "optimizer_states", "progress", "random"):
        assert_equal(one[key], other[key], key)
    assert_equal(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert rows(whole.metrics) == rows(second.metrics)


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_a_run_continues_on_another_number_of_threads(model: str, tmp_path: Path) -> None:
    """The same images and the same noise; sums may be added up in another order, so to rounding."""
    numerics.run_case(model, tmp_path, "max_updates=5")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert_expected(model, numerics.run_case(model, tmp_path, "resume=auto"))
    finally:
        torch.set_num_threads(before)
