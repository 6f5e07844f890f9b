"""The subspace analysis of any adapters, named on the command line.

    python -m experiments.subspace --config=configs/subspace/folders.py:r8=DIR,r64=DIR --workdir=OUT \\
        --config.model=roberta-base

DIR is an adapter folder, or the folder of a run of experiments.glue or experiments.nlg. All pairs of
adapters are compared. The model is their base; without it Table 7 and Figure 8 are left out.
"""

import itertools

from configs.subspace import common


def get_config(arg: str = "") -> common.ConfigDict:
    """Returns the config of `name=folder,name=folder`."""
    parts = [part.partition("=") for part in arg.split(",")]
    adapters = {name: folder for name, _, folder in parts}
    if not all(adapters) or not all(adapters.values()) or len(adapters) < len(parts):
        raise ValueError(
            f"{arg!r} is not NAME=FOLDER,NAME=FOLDER,... with different names, for example "
            "r8=runs/r8,r64=runs/r64"
        )
    return common.subspace_config(adapters, tuple(itertools.combinations(adapters, 2)))
