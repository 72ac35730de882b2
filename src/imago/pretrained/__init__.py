"""Pretrained models: names that stand for a trained model wherever a checkpoint is asked for.

Those of :data:`PACKAGED` lie in this package. Those of released.json are larger: they are fetched by name once, from
the address in the environment variable IMAGO_MODELS_URL, held against their SHA-256 and kept for this user.
"""

import functools
import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from imago.downloads import DownloadError, digest_of, download
from imago.errors import UserError
from imago.files import cache_folder
from imago.measures import Protocol
from imago.progress import progress_bar
from imago.untrusted import read_json

PACKAGED = Path(__file__).parent
RELEASED = PACKAGED / "released.json"
# The environment variable of the address, below which each released model has a folder of its name.
ADDRESS = "IMAGO_MODELS_URL"
# Of an exported model, whatever its name: the layout of the Hugging Face hub.
WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"


@functools.cache
def released() -> dict[str, dict[str, Any]]:
    """What released.json says of each model: ``told``, in a line, and the SHA-256 and bytes of its ``files``."""
    found: dict[str, dict[str, Any]] = read_json(RELEASED)
    return found


def packaged() -> list[str]:
    """The names of the models that lie in this package."""
    return sorted(file.parent.name for file in PACKAGED.glob(f"*/{WEIGHTS}"))


def told(folder: Path) -> str:
    """What an exported model is, in a line: its likelihood or distance, and the bytes of its weights."""
    results = {result["name"]: result for result in read_json(folder / "evaluation.json")}
    chosen = next((key for key in ("test/nats", "fd_classifier") if key in results), None)
    size = (folder / WEIGHTS).stat().st_size
    if chosen is None:
        return f"{size:,} bytes"
    protocol = Protocol.from_dict(results[chosen]["protocol"])
    relation = protocol.relation if protocol.likelihood else ""
    binary = " of binarised pixels" if protocol.binarization not in (None, "none") else ""
    return f"{chosen} {relation}{' ' * bool(relation)}{results[chosen]['value']:.4g}{binary}, {size:,} bytes"


def names() -> list[str]:
    """The names of all pretrained models."""
    return sorted({*packaged(), *released()})


def meant(name: str) -> str:
    """What to say of a name that there is not: the one that is most like it, or where to look."""
    close = get_close_matches(name, names(), 1)
    return f"did you mean {close[0]}?" if close else "imago models --pretrained lists those"


def folder_of(name: str) -> Path | None:
    """The folder of a pretrained model, fetched if need be; ``None`` if no model has this name.

    Raises:
        UserError: it has to be fetched, and cannot be.
    """
    if (PACKAGED / name / WEIGHTS).is_file() and name in packaged():
        return PACKAGED / name
    return _fetched(name, released()[name]["files"]) if name in released() else None


def is_pretrained(path: Path) -> bool:
    """Whether a file or folder is one of a pretrained model, next to which nothing else is kept; links are followed."""
    places = [PACKAGED]
    with suppress(RuntimeError):  # who has no home has fetched nothing
        places.append(_kept())
    above = path.resolve().parents
    return any(place.resolve() in above for place in places)


def _kept() -> Path:
    return cache_folder() / "models"


def _fetched(name: str, files: dict[str, dict[str, Any]]) -> Path:
    folder = _kept() / name
    address = os.environ.get(ADDRESS, "").rstrip("/")
    for file, known in files.items():
        path = folder / file
        if path.is_file() and path.stat().st_size == known["bytes"] and digest_of(path, "sha256") == known["sha256"]:
            continue
        if not address:
            raise UserError(
                f"checkpoint={name}: has to be fetched, and nothing says from where; set the environment variable "
                f"{ADDRESS} to the address below which its folder lies, or put that folder at {folder}"
            )
        try:
            with progress_bar(f"Fetching {name}/{file}") as progress:
                url, digest = f"{address}/{name}/{file}", f"sha256:{known['sha256']}"
                download([url], path, digest, size=known["bytes"], progress=progress)
        except (DownloadError, OSError) as error:
            raise UserError(
                f"checkpoint={name}: cannot be fetched ({error}); try again, set {ADDRESS} to another address, or put "
                f"the folder at {folder}"
            ) from None
    return folder
