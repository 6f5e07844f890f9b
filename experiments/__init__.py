"""Experiments: config in, run record out. `python -m experiments.NAME --config=... --workdir=DIR`."""
