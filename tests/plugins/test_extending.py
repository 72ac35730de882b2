"""docs/extending.md is the transformer of these tests, to the letter, and runs."""

import re
from pathlib import Path

import pytest

from helpers import PLUGINS

TEXT = (PLUGINS.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("file", re.findall(r"^\*\*`(\S+)`\*\*", TEXT, re.MULTILINE))
def test_its_files_are_those_of_the_tests(file: str) -> None:
    assert (PLUGINS / file).read_text(encoding="utf-8") in BLOCKS


def test_its_lines_train_and_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (lines,) = [block for block in BLOCKS if "Trainer(" in block]
    quiet = "max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator='cpu'"
    exec(lines.replace("max_steps=200", quiet), {})
    assert "torch.Size([4, 1, 8, 8]) tensor(-" in capsys.readouterr().out
