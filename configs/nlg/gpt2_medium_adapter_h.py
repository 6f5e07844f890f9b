"""GPT-2 medium with Adapter H on E2E, WebNLG and DART.

Row "GPT-2 M (AdapterH)", 11.09M parameters, of Table 3.

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_adapter_h.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset         | BLEU    | NIST     | MET     | ROUGE-L | CIDEr    |
|-----------------|---------|----------|---------|---------|----------|
| e2e, paper      | 67.3±.6 | 8.50±.07 | 46.0±.2 | 70.7±.2 | 2.44±.01 |

Tables 13 (DART) and 14 (WebNLG) have no such row; the config takes those data sets all the same.

11,064,576 values of size 112, the nearest to the paper's total, which no size gives. The paper's
authors ran this row themselves and do not say how, and their GPT-2 adapter code is not public: learning
rate, epochs and batch size are those of the LoRA row (Table 11), which is our choice.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    return common.nlg_config(arg, "gpt2-medium", {"name": "adapter_h", "size": 112})
