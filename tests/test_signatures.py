"""What is read of constructors from their source text is what they are."""

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from imago import config, signatures
from imago.errors import UserError

TARGETS = {
    (path.relative_to(config.CONF).parts[0].removesuffix(".yaml"), name)
    for path in config.CONF.rglob("*.yaml")
    for name in re.findall(r"_target_: *(\S+)", path.read_text(encoding="utf-8"))
    if not name.startswith(("lightning.", "imago.cli."))
}
VALUES: list[Any] = [None, True, -1, 0, 1, 2.5, 10**7, "", "abc", "threshold", [], [1], ["a"], [[1, 2]], {}, {"a": 1}]


def real(group: str, name: str) -> signatures.Arguments:
    return config.arguments_of(config.target(name, {"experiment": "model"}.get(group, group)))


def said(value: Any, hint: Any) -> str:
    try:
        config._check_value(value, hint, "key")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("group", "name"), sorted(TARGETS))
def test_text_and_class_tell_the_same(group: str, name: str) -> None:
    read = signatures.arguments_of(name)
    assert read is not None
    hints, required, others = real(group, name)
    assert (list(read[0]), read[1:]) == (list(hints), (required, others))
    for key, hint in hints.items():
        if is_dataclass(hint):  # given by the program alone
            continue
        assert [said(value, read[0][key]) for value in VALUES] == [said(value, hint) for value in VALUES], key


def test_what_no_text_tells_is_left_to_the_class() -> None:
    for name in ("lightning.Trainer", "imago.models.gan.Missing", "imago.missing.Class", "imago.models.gan.torch"):
        assert signatures.arguments_of(name) is None
    config.check_node({"_target_": "imago.models.gan.Missing", "latent": "x"}, "model", imported=False)
    with pytest.raises(UserError, match="Missing"):
        config.check_node({"_target_": "imago.models.gan.Missing", "latent": "x"}, "model")


def test_settings_that_a_constructor_hands_on_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handing.py").write_text(
        "from typing import TypedDict, Unpack\n"
        "from pydantic import PositiveInt\n"
        "class Basic(TypedDict, total=False):\n    width: PositiveInt\n"
        "class More(Basic, total=False):\n    depth: 'int | None'\n"
        "class Above:\n    def __init__(self, spec, *, size: int, **more: Unpack[More]) -> None: ...\n"
        "class Below(Above): ...\n"
        "def function(first, *rest, **others): ...\n"
    )
    monkeypatch.setattr(signatures, "_is_read", lambda name: name.startswith("imago_handing"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imago_handing").mkdir()
    (tmp_path / "handing.py").rename(tmp_path / "imago_handing" / "handing.py")
    (tmp_path / "imago_handing" / "__init__.py").write_text("from .handing import Below, function\n")
    read = signatures.arguments_of("imago_handing.Below")
    assert read is not None
    hints, required, others = read
    assert (required, others) == (["spec", "size"], False)
    assert list(hints) == ["spec", "size", "width", "depth"]
    assert "greater than 0" in said(0, hints["width"])
    assert said(None, hints["depth"]) == ""
    assert signatures.arguments_of("imago_handing.function") == ({"first": Any}, ["first"], True)
