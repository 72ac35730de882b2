"""What holds for every model of a user's: configurations may construct it."""

import pytest

from imago import config


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLUGINS", ())
    config.allow("my_models")
