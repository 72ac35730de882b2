"""The type checker that runs while tests run: beartype, for which (as for mypy) an int may stand where a float is asked."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
