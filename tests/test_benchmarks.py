"""The tables of benchmarks/README.md hold the numbers of the committed results."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imago.config import check, composed, plain, without_hydra

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


COMPARED = [
    path.stem for path in sorted((BENCHMARKS / "results").glob("*.json")) if path.stem not in ("scaling", "speedrun")
]


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


@pytest.mark.parametrize("name", ["scaling", "speedrun"])
def test_a_page_of_its_own_holds_the_committed_results(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module(name)
    content = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    page = (BENCHMARKS.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")
    begin, end = script.MARKS
    assert page.split(begin)[1].split(end)[0].strip() == script.tables(content)


def test_records_are_run_once_and_nights_only_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    done = []
    result = {"nats": 90.0, "wall_seconds": 1.0}
    monkeypatch.setattr(speedrun, "ROOT", tmp_path.parent)
    monkeypatch.setattr(speedrun, "OUT", tmp_path)
    monkeypatch.setattr(speedrun, "own", lambda row, seed: done.append(f"{row.name}/{seed}") or result)
    monkeypatch.setattr(speedrun, "peer", lambda row: done.append(row.name) or result)
    monkeypatch.setattr(speedrun, "report", lambda: None)
    monkeypatch.setattr("sys.argv", ["speedrun.py", "made/", "row_lstm-"])
    speedrun.main()
    assert done == ["made/1", "made/2", "made/3", "made", "row_lstm-night/1", "row_lstm-night/2", "row_lstm-night/3"]
    (tmp_path / "made" / "2.json").unlink()
    done.clear()
    speedrun.main()
    assert done == ["made/2"]
    monkeypatch.setattr("sys.argv", ["speedrun.py"])
    speedrun.main()
    assert "pixelcnn/1" in done
    assert "row_lstm/1" in done
    assert not [name for name in done if "night" in name or "hour" in name]


def test_records_that_were_run_elsewhere_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until their part is run here, or their commands are others."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    out = tmp_path / speedrun.OUT.relative_to(speedrun.ROOT)
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    monkeypatch.setattr(speedrun, "OUT", out)
    committed = json.loads((BENCHMARKS / "results" / "speedrun.json").read_text())
    assert {"rows": speedrun.collected(committed), "command": committed["command"]} == committed
    (out / "fvbn").mkdir(parents=True)
    here = {"nats": 95.0, "wall_seconds": 1.0, "date": "2026-12-02", "machine": "another"}
    of_another_recipe = here | {"commands": ["src/train.py experiment=another seed=3"]}
    (out / "fvbn" / "1.json").write_text(json.dumps(of_another_recipe))
    part = next(part for part in speedrun.parts() if part.name == "fvbn/3")
    (out / "fvbn" / "3.json").write_text(json.dumps(here | {"commands": part.commands}))
    fvbn = speedrun.collected(committed)[0]
    assert fvbn["seeds"] == [*committed["rows"][0]["seeds"], here | {"part": "3"}]
    assert "another; 2026-12-02." in speedrun.tables({"rows": [fvbn]})
    committed["rows"][0]["commands"][0] += " model.optimizer.net.lr=1"
    assert [seed["nats"] for seed in speedrun.collected(committed)[0]["seeds"]] == [95.0]


def test_commands_of_records_end_by_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    for row in {row.experiment: row for row in speedrun.ROWS}.values():
        config = plain(without_hydra(composed("train", row.train(1)[1:])))
        settings = check(config)
        assert settings.max_cpu_seconds == row.seconds
        assert {settings.max_images, settings.max_updates, settings.max_seconds, settings.max_wall_seconds} == {None}
        assert config["data"]["binarize"] == "dynamic"
        assert config["model"]["schedule"]["end"] is None


def test_a_peer_is_measured_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    mean, log_scale, signal = torch.tensor([[0.3, -2.0]]), torch.tensor([[-1.0, 0.5]]), torch.tensor([[-1.0, 1.0]])
    seen = []
    code = SimpleNamespace(embedding=mean, log_covariance=2 * log_scale)
    assert torch.equal(
        speedrun.TheirEncoder(lambda x: seen.append(x) or code)(signal, None), torch.cat([mean, log_scale], 1)
    )
    assert torch.equal(seen[0], torch.tensor([[0.0, 1.0]]))
    logits = torch.tensor([[-8.0, 0.0, 3.0]])
    decoder = speedrun.TheirDecoder(lambda z: SimpleNamespace(reconstruction=logits.sigmoid()))
    torch.testing.assert_close(decoder(mean, None)[..., 0], logits, atol=1e-3, rtol=1e-3)


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
