"""GPT-2 large, full fine-tuning on E2E, WebNLG and DART.

Row "GPT-2 L (FT)", 774.03M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_large_full.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset         | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|-----------------|------|------|------|---------|-------|
| e2e, paper      | 68.5 | 8.78 | 46.0 | 69.9    | 2.45  |

| dataset         | BLEU unseen, seen, all | MET           | TER           |
|-----------------|------------------------|---------------|---------------|
| webnlg, paper   | 43.1, 65.3, 55.5       | .38, .46, .42 | .53, .33, .42 |
| dart, paper     | 47.0                   | 0.39          | 0.46          |

774,030,080 values. The numbers are from earlier papers (Li and Liang 2021), and so are learning rate,
epochs and batch size; Table 11 is for LoRA only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    return common.full_config(arg, "gpt2-large")
