"""Are these the images that a run was trained on, and the ones that were held out? Whoever goes on or measures asks."""

import sys
from collections.abc import Mapping
from typing import Any

from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.images import ImageSpec


def check_same_data(checkpoint: Mapping[str, Any], data: ImageDataModule, remedy: str) -> None:
    """Refuse data that are not those of a checkpoint's run; where they are, call them as the run does.

    Nothing is known of the data of an older checkpoint, which is said.

    Args:
        checkpoint: its content.
        data: prepared.
        remedy: what to do instead.

    Raises:
        UserError: in a line that says what differs.
    """
    then, spec = checkpoint.get("data"), ImageSpec(**checkpoint["spec"])
    if changed := _changes(then, spec, data):
        raise UserError(f"data: {data.name} is not what the run was trained on: {changed}; {remedy}")
    if then is None:
        print(
            f"note: the checkpoint does not say what its data were; that these are the same images of {data.name}, "
            "with the same ones held out, is taken for granted",
            file=sys.stderr,
        )
        return
    name = then.get("name")
    if isinstance(name, str) and name.isprintable() and 0 < len(name) < 256 and not {"/", "\\"} & set(name):
        data.name = name  # of a folder that has another name now


def _changes(then: Any, spec: ImageSpec, data: ImageDataModule) -> str:
    """In a few words what is different now; empty where nothing is.

    Args:
        then: the ``identity`` of the data in training; ``None`` where nothing is known of it.
        spec: theirs.
        data: prepared.
    """
    if str(spec) != str(data.spec):
        return f"its images are {data.spec} now, {spec} then"
    if then is None:
        return ""
    now, before = data.splits, then.get("splits") if isinstance(then, Mapping) else None
    if not isinstance(before, dict) or not all(isinstance(before.get(split), dict) for split in now):
        return "the checkpoint's note of them is damaged"
    counts, counted = ([part[split].get("images", 0) for split in now] for part in (now, before))
    if counts != counted:
        if all(isinstance(count, int) for count in counted) and sum(counts) != sum(counted):
            return f"{sum(counts):,} images now, {sum(counted):,} then, so others are held out"
        return f"{', '.join(now)} have {counts} images now, {counted} then"
    others = [split for split in now if now[split]["fingerprint"] != before[split].get("fingerprint")]
    if others:
        return f"as many images, but other ones, or other labels, in {', '.join(others)}"
    pairs = zip(data.spec.class_names, spec.class_names, strict=False)
    return next((f"class {new} was called {old} then" for new, old in pairs if new != old), "")
