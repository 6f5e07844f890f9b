"""Spectra and overlaps of the LoRA adapter that the paper's authors released: RoBERTa-base, MNLI.

    python -m experiments.convert from_loralib --checkpoint=roberta_base_lora_mnli.bin --alpha=16 \\
        --output=DIR
    python -m experiments.subspace --config=configs/subspace/roberta_base_mnli.py:DIR \\
        --workdir=runs/mnli_analysis

The argument is the converted adapter. The factors need no base weights. For Table 7 and Figure 8 convert
with --model=roberta-base and set --config.model=roberta-base.
"""

from configs.subspace import common


def get_config(adapter: str = "runs/mnli_released") -> common.ConfigDict:
    """Returns the config for the converted adapter."""
    return common.subspace_config({"r8": adapter}, (("r8:query", "r8:value"),))
