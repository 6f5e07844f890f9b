"""The type checker that the import hook in conftest.py puts around every function of the library."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# An int is a float, as type checkers have it (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
