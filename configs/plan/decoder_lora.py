"""LoRA on all linear layers of a published decoder: does it fit the card, and for which batch?

    python -m experiments.plan --config=configs/plan/decoder_lora.py:llama-2-7b --topology=rtx4090:1
    python -m experiments.plan --config=configs/plan/decoder_lora.py:llama-3.1-8b --topology=h100:8 --search
    python -m experiments.plan --config=configs/plan/decoder_lora.py --topology=v5e:2x4 --config.rows=8

The argument is the name of a decoder: GPT-2, Llama, Mistral, Qwen, Gemma, SmolLM2
(`experiments.parameters --models=all` lists them). r = 64 on the seven matrices of every layer as in QLoRA
(Dettmers et al. 2023, appendix B.2), one row of 2,048 tokens, every token predicted, the layers recomputed
in the backward pass; over a base in bfloat16 and over one in NF4 (QLoRA), beside full fine-tuning. The base is split over the devices of a host, which needs a row for each; with
`--config.mesh.data=-1 --config.mesh.fsdp=1` each has a copy.
"""

from configs.plan.common import ConfigDict, plan_config

# Dettmers et al. 2023, Table 9 and section 4: alpha 16, dropout 0.1 up to 13B.
_METHOD = {"name": "lora", "targets": "all-linear", "rank": 64, "alpha": 16.0, "dropout": 0.1}


def get_config(size: str = "llama-2-7b") -> ConfigDict:
    """Returns the plan for a decoder."""
    return plan_config(
        size, _METHOD, mesh={"data": 1, "fsdp": -1, "model": 1}, rows=1, length=2048, outputs=2047,
        remat="full", model_axis=(1, 2, 4, 8), search_rows=(1, 2, 4, 8, 16, 32), max_grad_norm=0.3,
        packed=("nf4",),
    )  # fmt: skip
