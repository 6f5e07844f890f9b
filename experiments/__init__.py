"""Experiments: config in, run record out. `python -m experiments.NAME --config=... --workdir=DIR`."""

import os

# Else transformers says at every start that PyTorch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
