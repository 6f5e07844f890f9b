"""GPT-2 large with prefix-layer tuning on E2E, WebNLG and DART.

Row "GPT-2 L (PreLayer)", 0.77M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_large_prefix_layer.py:DATASET \\
        --workdir=runs/DATASET --config.data.source=FOLDER

| dataset         | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|-----------------|------|------|------|---------|-------|
| e2e, paper      | 70.3 | 8.85 | 46.2 | 71.7    | 2.47  |

| dataset         | BLEU unseen, seen, all | MET           | TER           |
|-----------------|------------------------|---------------|---------------|
| webnlg, paper   | 47.7, 63.4, 56.3       | .39, .45, .42 | .48, .34, .40 |
| dart, paper     | 46.7                   | 0.38          | 0.45          |

737,280 values, exactly as many as LoRA's: 16 prefix tokens, no infix. The paper's 0.77M is Li and
Liang's label (0.1% of the model); their prefix is another one (5 tokens, on DART 10, differently
parametrised), so the 16 are ours. The numbers are from earlier papers (Li and Liang 2021), and so are
learning rate, epochs and batch size, chosen for their prefix; Table 11 is for LoRA only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of a data set: e2e, webnlg or dart."""
    return common.prefix_layer_config(arg, "gpt2-large")
