"""GPT-2 medium, fine-tuning of the last two layers on E2E, WebNLG and DART.

Row "GPT-2 M (FT_Top2)", 25.19M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_top2.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset         | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|-----------------|------|------|------|---------|-------|
| e2e, paper      | 68.1 | 8.59 | 46.0 | 70.8    | 2.41  |

| dataset         | BLEU unseen, seen, all | MET           | TER           |
|-----------------|------------------------|---------------|---------------|
| webnlg, paper   | 18.9, 53.6, 36.0       | .23, .38, .31 | .99, .49, .72 |
| dart, paper     | 41.0                   | 0.34          | 0.56          |

25,192,448 values (Tables 13 and 14 print 24M); the final LayerNorm stays frozen. The numbers are from
earlier papers (Li and Liang 2021), and so are learning rate, epochs and batch size; Table 11 is for
LoRA only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    method = {"name": "top_layers", "count": 2}
    return common.li_and_liang_config(arg, "gpt2-medium", method, "top2")
