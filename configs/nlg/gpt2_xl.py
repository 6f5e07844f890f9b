"""GPT-2 XL, the largest public model of GPT-3's kind, with Table 12's hyperparameters: Table 4 in small.

    python -m experiments.nlg --config=configs/nlg/gpt2_xl.py:wikisql,lora --workdir=runs/xl_wikisql_lora \\
        --config.data.source=FOLDER

| paper, GPT-3 175B | trained    | WikiSQL | MNLI-m | SAMSum R1, R2, RL |
|-------------------|------------|---------|--------|-------------------|
| full              | 175,255.8M | 73.8    | 89.5   | 52.0, 28.0, 44.5  |
| bitfit            | 14.2M      | 71.3    | 91.0   | 51.3, 27.4, 43.5  |
| prefix_embed      | 3.2M       | 63.1    | 88.6   | 48.3, 24.2, 40.5  |
| prefix_layer      | 20.2M      | 70.1    | 89.5   | 50.8, 27.3, 43.5  |
| adapter_h_small   | 7.1M       | 71.9    | 89.8   | 53.0, 28.9, 44.8  |
| adapter_h         | 40.1M      | 73.2    | 91.5   | 53.2, 29.0, 45.1  |
| lora_small        | 4.7M       | 73.4    | 91.7   | 53.8, 29.8, 45.9  |
| lora              | 37.7M      | 74.0    | 91.6   | 53.4, 29.2, 45.1  |

The argument is `DATASET,METHOD`: wikisql, samsum, mnli_text (or dialogsum, rte_text and others of
configs/nlg/table_12.py), and a method of the table. FOLDER holds the original files, docs/data_to_text.md
says which. Another model of GPT-2's kind: --config.model.name=NAME; of Llama's kind: configs/nlg/llama.py.
AdamW, linear schedule, batch 128 (on small devices --config.batch_size=16 --config.accumulate=8), 2 epochs,
weight decay 0.1, 250,000 tokens of warm-up. GPT-2's 1,024 positions cut SAMSum's 2,048 tokens.
"""

from configs.nlg import common


def get_config(arg: str = "wikisql,lora") -> common.ConfigDict:
    """Returns the config of `dataset,method`."""
    return common.table_12_config(arg, "gpt2-xl", fused=True)
