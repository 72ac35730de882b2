"""A model and its data as the command line composes them, for scripts and notebooks."""

from collections.abc import Sequence

from lightning import seed_everything

from imago.config import build, check, composed, plain, without_hydra
from imago.data import ImageDataModule
from imago.models.base import GenerativeModel
from imago.training.run import build_model


def compose(overrides: Sequence[str] = ()) -> tuple[GenerativeModel, ImageDataModule]:
    """The model and the data of ``python src/train.py OVERRIDES``, ready for any trainer.

    Seeds Python's, NumPy's and torch's generators with the setting ``seed``, as train.py does, so the weights are those
    with which it begins. Whatever the settings say of trainer, callbacks and loggers is left to whoever trains.

    Args:
        overrides: as on the command line: ``["model=vae", "data=digits", "model.latent=8"]``.

    Returns:
        the model, with its settings as ``model.config``, and the data, read (and downloaded where they are missing).

    Raises:
        HydraException: an override names nothing, or a choice that there is not.
        UserError: a value that cannot be, or data that cannot be had.
    """
    config = plain(without_hydra(composed("train", overrides)))
    settings = check(config)
    seed_everything(settings.seed, verbose=False)
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    return build_model(config, data.spec), data
