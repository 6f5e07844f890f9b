"""The fields that only configs of experiments.tune have."""

from __future__ import annotations

from experiments.runs.field import Field, Fields
from lora_jax.data.tuning import LONG, LOSSES
from lora_jax.metrics.answers import METRICS
from lora_jax.ranges import SEED, Number, OneOf, Text, Whole

TUNE_FIELDS: Fields = {
    "metric": Field(
        OneOf(("", *METRICS)),
        "share of right answers to the test examples: the same words, or the same last number (behind "
        "`####`, as GSM8K has it)",
    ),
    "data.train": Field(Text(), "file of the examples: .jsonl, .json, .csv, .tsv or .parquet"),
    "data.validation": Field(Text(empty="a part of `data.train`"), "file of the held-out examples"),
    "data.held_out": Field(
        Number(least=0, most=1e9), "part of `data.train`: a share below 1, or a number of examples"
    ),
    "data.split_seed": Field(SEED, "of the choice of held-out examples"),
    "data.test": Field(
        Text(empty="nothing"),
        "decoded after training: a file, or `held_out` for the held-out examples",
    ),
    "data.max_prompts": Field(Whole(least=0), "examples of `data.test`; 0 is all"),
    "data.format": Field(
        OneOf(("auto", "text", "chat")),
        "prompt and completion, or a chat template; `auto`: chat if there is a column of messages",
    ),
    "data.messages": Field(Text(empty="none"), "column of messages"),
    "data.template": Field(Text(), "of a prompt, over the other columns: `{question}`"),
    "data.completion": Field(Text(), "column of the completion"),
    "data.separator": Field(Text(empty="none"), "between prompt and completion (text)"),
    "data.system": Field(Text(empty="none"), "system message in front (chat, without messages)"),
    "data.chat_template": Field(Text(empty="the tokenizer's"), "file with a Jinja template (chat)"),
    "data.long": Field(
        OneOf(LONG), "what becomes of examples of more than `data.max_length` tokens"
    ),
    "data.loss": Field(OneOf(LOSSES), "the tokens that are learned"),
    "samples.count": Field(Whole(least=0, most=1000), "held-out prompts decoded after every epoch"),
    "samples.max_tokens": Field(Whole(most=2**16), "of their continuations"),
    "decode.method": Field(OneOf(("greedy", "sample", "beam")), "how test prompts are continued"),
    "decode.temperature": Field(
        Number(least=0, most=100), "divides the logits (sample); 0 is greedy"
    ),
    "decode.top_k": Field(Whole(least=0), "the most probable tokens (sample); 0 is all"),
    "decode.top_p": Field(Number(above=0, most=1), "their probability together (sample)"),
    "decode.seed": Field(SEED, "of sampling"),
}
