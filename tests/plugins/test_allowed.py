"""Classes of one's own package are constructed where it is allowed, and nowhere else."""

import pytest

from helpers import configuration
from imago import config
from imago.errors import UserError
from imago.images import ImageSpec
from imago.training.run import build_model


def test_a_package_that_is_not_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLUGINS", ())
    for other in (None, "my_model", "my_models.transformers"):
        if other is not None:
            config.allow(other)
        with pytest.raises(UserError, match=r"model\._target_=my_models\.transformer\.Transformer: .*only .* in model"):
            build_model(configuration("model=transformer"), ImageSpec(1, 2, 2))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_models.transformer.Tensor", "only"),  # imported there and not defined there
        ("my_models.transformer.quantize", "only"),
        ("my_models.transformer.Lost", "check the spelling"),
        ("my_models.nowhere.Lost", "check the spelling"),
    ],
)
def test_only_its_own_classes_are_constructed(target: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        config.target(target, "model")


@pytest.mark.parametrize("name", ["", "my-models", "my_models.", "os; import sys"])
def test_what_is_no_package_cannot_be_allowed(name: str) -> None:
    with pytest.raises(UserError, match="not the name of a Python package"):
        config.allow(name)
