"""How arguments and results are checked in tests: an int may stand for a float, as for mypy."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
