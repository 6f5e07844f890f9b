"""GPT-2 medium with Adapter L on E2E, WebNLG and DART.

Rows "GPT-2 M (AdapterL)", 0.37M and 11.09M parameters, of Tables 3, 13 and 14.

    python -m experiments.nlg --config=configs/nlg/gpt2_medium_adapter_l.py:DATASET --workdir=runs/DATASET \\
        --config.data.source=FOLDER

| dataset              | BLEU | NIST | MET  | ROUGE-L | CIDEr |
|----------------------|------|------|------|---------|-------|
| e2e, paper, small    | 66.3 | 8.41 | 45.0 | 69.8    | 2.40  |
| e2e, paper, large    | 68.9 | 8.71 | 46.1 | 71.3    | 2.47  |

| dataset              | BLEU unseen, seen, all | MET           | TER           |
|----------------------|------------------------|---------------|---------------|
| webnlg, paper, small | 45.1, 54.5, 50.2       | .36, .39, .38 | .46, .40, .43 |
| webnlg, paper, large | 48.3, 60.4, 54.9       | .38, .43, .41 | .45, .35, .39 |
| dart, paper, small   | 42.4                   | 0.36          | 0.48          |
| dart, paper, large   | 45.2                   | 0.38          | 0.46          |

Variants: `DATASET` is `DATASET,small`, size 6, 368,784 values; `DATASET,large` is size 224, 11,089,152
values. The sizes are inferred from the totals. The numbers are from earlier papers (Li and Liang 2021),
and so are learning rate, epochs and batch size (their adapters of 0.1% and 3%); Table 11 is for LoRA
only.

Test sets, mean of 3 seeds, each at its best epoch.
"""

from configs.nlg import common


def get_config(arg: str = "e2e") -> common.ConfigDict:
    """Returns the config of `DATASET`, `DATASET,small` or `DATASET,large`."""
    return common.adapter_l_config(arg, "gpt2-medium", small=6, large=224)
