"""A model and its data as the command line composes them, for scripts and notebooks."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import seed_everything

from imago.config import build, check, composed, plain, searched, without_hydra
from imago.data import ImageDataModule
from imago.models.base import GenerativeModel
from imago.plugins import folders_of, named
from imago.training.run import build_model


def compose(overrides: Sequence[str] = ()) -> tuple[GenerativeModel, ImageDataModule]:
    """The model and the data of ``python src/train.py OVERRIDES``, ready for any trainer.

    Seeds Python's, NumPy's and torch's generators with the setting ``seed``, as train.py does, so the weights are those
    with which it begins. Whatever the settings say of trainer, callbacks and loggers is left to whoever trains.

    Args:
        overrides: as on the command line: ``["model=vae", "data=digits", "model.latent=8"]``; with ``plugins=[NAME]``
            those of a package of your own.

    Returns:
        the model, with its settings as ``model.config``, and the data, read (and downloaded where they are missing).

    Raises:
        HydraException: an override names nothing, or a choice that there is not.
        UserError: a value that cannot be, or data that cannot be had.
    """
    folders = folders_of(named(OverridesParser.create().parse_overrides(list(overrides))))
    config = plain(without_hydra(composed("train", [*searched(folders), *overrides])))
    settings = check(config)
    seed_everything(settings.seed, verbose=False)
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    return build_model(config, data.spec), data
