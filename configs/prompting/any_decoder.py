"""Any decoder, asked in prompts with demonstrations as in Table 8; the model is given by name.

    python -m experiments.prompting --config=configs/prompting/any_decoder.py:mnli --workdir=runs/prompts \\
        --config.model.name=NAME --config.data.source=FOLDER_WITH_GLUE_TSV_FILES

NAME is a folder, a GGUF file, or a name of the hub, of any family of docs/decoders.md; without it GPT-2 XL.
The argument and the paper's numbers: configs/prompting/smollm2.py. The whole dev set is scored.
"""

from configs.prompting import common


def get_config(arg: str = "mnli") -> common.ConfigDict:
    """Returns the config of a task."""
    return common.prompting_config(arg, "gpt2-xl")
