"""GPT-2 medium, full fine-tuning on E2E, WebNLG and DART.

Row "GPT-2 M (FT)", 354.92M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_full.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset         | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|-----------------|------|------|------|---------|-------|
| e2e, paper      | 68.2 | 8.62 | 46.2 | 71.0    | 2.47  |

| dataset         | BLEU unseen, seen, all | MET           | TER           |
|-----------------|------------------------|---------------|---------------|
| webnlg, paper   | 27.7, 64.2, 46.5       | .30, .45, .38 | .76, .33, .53 |
| dart, paper     | 46.2                   | 0.39          | 0.46          |

354,823,168 values, counted. The numbers are from earlier papers (Li and Liang 2021), and so are
learning rate, epochs and batch size; Table 11 is for LoRA only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    return common.full_config(arg, "gpt2-medium")
