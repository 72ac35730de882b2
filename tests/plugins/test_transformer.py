"""The promises of every model and of those by the chain rule, kept by a transformer of one's own."""

from imago.images import ImageSpec
from models.test_autoregressive import (  # noqa: F401
    test_a_completion_keeps_what_is_known_and_draws_the_rest,
    test_changing_a_value_moves_no_logit_at_or_before_it,
    test_probabilities_of_every_class_sum_to_one,
    test_probabilities_sum_to_one,
    test_samples_have_the_models_probabilities,
)
from models.test_laws import *  # noqa: F403

MODELS = ["transformer"]
SPECS = {
    "binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2),
    "rgb-1x2": ImageSpec(3, 1, 2, levels=4, classes=2),
    "tokens-2x3": ImageSpec(1, 2, 3, levels=300, classes=2, tokens=True),
}
GRAY = ImageSpec(1, 3, 4, classes=3)
