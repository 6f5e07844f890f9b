"""The fields of configs of experiments.prompting."""

from __future__ import annotations

from experiments.runs.field import Field, Fields
from experiments.runs.fields import GLUE
from lora_jax.data.glue_prompts import FORMS, WORDINGS
from lora_jax.ranges import SEED, OneOf, OrNone, Several, Text, Whole

PROMPTING: Fields = {
    "task": Field(OneOf(tuple(WORDINGS)), "of GLUE, whose classes the model chooses from"),
    "form": Field(
        OneOf(FORMS), "of prompts; text: that of experiments.nlg, for models that were tuned by it"
    ),
    "shots": Field(
        Whole(least=0, most=1000), "demonstrations of each class in every prompt; 0: none (zero-shot)"
    ),
    "seeds": Field(Several(of=SEED), "one draw of demonstrations for each"),
    "model.name": GLUE["model.name"],
    "model.base_format": GLUE["model.base_format"],
    "model.attention": GLUE["model.attention"],
    "adapter": Field(Text(empty="none"), "the run of experiments.nlg whose model is asked"),
    "adapter_task": Field(
        OrNone(of=Text(), none="the task as text, such as mnli_text"),
        "the task that `adapter` was trained on, if it is another one on purpose",
        False,
    ),
    "data.source": GLUE["data.source"],
    "data.max_eval_examples": Field(Whole(least=0), "dev examples, the first ones; 0 is all"),
}  # fmt: skip
