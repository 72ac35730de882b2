"""The type checker that runs while tests run: beartype, with an int allowed where a float is asked, as mypy does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
