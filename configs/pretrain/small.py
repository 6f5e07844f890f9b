"""A small GPT-2 for machines without a hub: 4 layers, 256 wide, 4.34M parameters.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER

FOLDER holds the original files of E2E, WebNLG 2017 and DART. The model reads only the texts of E2E, but
data and texts of WebNLG and DART, so E2E's data format is new to it: this is what LoRA has to teach. About
40 minutes on two CPU cores. No row of the paper.

DART's training set contains WebNLG's and E2E's (cleaned, as triples); test sets are not read.
"""

from ml_collections import ConfigDict

from configs.training import training_fields


def get_config() -> ConfigDict:
    """Returns the config."""
    return ConfigDict(
        {
            **training_fields(),
            # Names as in GPT-2's config.json; the paper's GPT-2 code uses no dropout.
            "model": {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 512},
            # An existing tokenizer (folder or hub name), or "" to train one of this size.
            "tokenizer": {"name": "", "vocab_size": 4096},
            "data": {
                "source": "data",
                "corpora": {"e2e": "texts", "webnlg": "pairs", "dart": "pairs"},
                "max_examples": 0,  # of each corpus; 0 is all
            },
            "seed": 0,
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
        }
    )
