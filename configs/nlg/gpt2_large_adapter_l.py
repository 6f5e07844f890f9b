"""GPT-2 large with Adapter L on E2E, WebNLG and DART.

Rows "GPT-2 L (AdapterL)", 0.88M and 23.00M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_large_adapter_l.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset              | BLEU    | NIST     | MET     | ROUGE-L | CIDEr    |
|----------------------|---------|----------|---------|---------|----------|
| e2e, paper, small    | 69.1±.1 | 8.68±.03 | 46.3±.0 | 71.4±.2 | 2.49±.0  |
| e2e, paper, large    | 68.9±.3 | 8.70±.04 | 46.1±.1 | 71.3±.2 | 2.45±.02 |

| dataset              | BLEU unseen, seen, all    | MET           | TER           |
|----------------------|---------------------------|---------------|---------------|
| webnlg, paper, small | 49.8±.0, 61.1±.0, 56.0±.0 | .38, .43, .41 | .44, .35, .39 |
| webnlg, paper, large | 49.2±.1, 64.7±.2, 57.7±.1 | .39, .46, .43 | .46, .33, .39 |
| dart, paper, small   | 45.7±.1                   | 0.38          | 0.46          |
| dart, paper, large   | 47.1±.1                   | 0.39          | 0.45          |

Variants: `DATASET` is `DATASET,small`, size 8, 875,808 values; `DATASET,large` is size 248, 23,002,848
values. The sizes are inferred from the totals. The paper's authors ran these rows themselves and do not
say how. Learning rate, epochs and batch size are those of Li and Liang 2021 for the same method at the
same share of GPT-2 medium, 0.1% and 3%; taking them is our choice.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of `DATASET`, `DATASET,small` or `DATASET,large`."""
    return common.adapter_l_config(arg, "gpt2-large", small=8, large=248)
