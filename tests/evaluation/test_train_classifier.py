from pathlib import Path

import hydra
import pytest
import torch

from imago.cli import train_classifier
from imago.errors import UserError
from imago.evaluation.choices import network_from

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs src/train_classifier.py with overrides, in an empty folder and in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> None:
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = hydra.compose("train_classifier", list(overrides))
        train_classifier.main(config)

    return run


def test_writes_a_file_for_metrics_weights(script, capsys):
    script("data=digits", "max_images=300", "out=digits.pt")
    assert "accuracy" in capsys.readouterr().out
    content = torch.load("digits.pt", weights_only=True)
    assert (content["images_seen"], content["seed"], content["shape"]) == (300, 0, [1, 8, 8])
    assert network_from(content).dimensions == 56
    assert [path.name for path in Path().iterdir()] == ["digits.pt"]
    script("data=digits", "max_images=300", "out=digits.pt")  # its own file is replaced
    Path("mine.py").write_text("mine")
    torch.save({"state_dict": {}}, "mine.pt")
    for mine in (Path("mine.py"), Path("mine.pt")):
        before = mine.read_bytes()
        with pytest.raises(UserError, match=rf"^out={mine}: is there already, and no file of this command's; give an"):
            script("data=digits", "max_images=300", f"out={mine}")
        assert mine.read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=bars", "out=x.pt"], "data: bars has no labels"),
        (["data=digits"], "out: "),
        (["data=digits", "out=nowhere/x.pt"], "out=nowhere/x.pt: there is no folder"),
        (["data=digits", "out=x.pt", "max_images=0"], "max_images=0: input should be greater than 0"),
    ],
)
def test_mistakes_are_one_message(script, overrides, message):
    with pytest.raises(UserError, match=f"^{message}"):
        script(*overrides)
