"""GPT-2 medium with prefix-layer tuning on E2E, WebNLG and DART.

Row "GPT-2 M (PreLayer)", 0.35M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_prefix_layer.py:DATASET \\
        --workdir=runs/DATASET --config.data.source=FOLDER

| dataset         | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|-----------------|------|------|------|---------|-------|
| e2e, paper      | 69.7 | 8.81 | 46.1 | 71.4    | 2.49  |

| dataset         | BLEU unseen, seen, all | MET           | TER           |
|-----------------|------------------------|---------------|---------------|
| webnlg, paper   | 45.6, 62.9, 55.1       | .38, .44, .41 | .49, .35, .40 |
| dart, paper     | 46.4                   | 0.38          | 0.46          |

393,216 values, exactly as many as LoRA's: 16 prefix tokens, no infix. The paper's 0.35M is Li and
Liang's label (0.1% of the model); their prefix is another one (5 tokens, on DART 10, differently
parametrised), so the 16 are ours. The numbers are from earlier papers (Li and Liang 2021), and so are
learning rate, epochs and batch size, chosen for their prefix; Table 11 is for LoRA only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    return common.prefix_layer_config(arg, "gpt2-medium")
