"""GGUF files that are wrong in some way: an error that names the file, or a model and a tokenizer."""

from __future__ import annotations

import gguf
import gguf_models
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from lora_jax.data.tokenizers import load_tokenizer
from lora_jax.errors import InputError
from lora_jax.models import gguf_config
from lora_jax.models.gguf_files import GgufFiles
from tests.fuzz.fixed_settings import fixed_settings

Q8_0 = gguf.GGMLQuantizationType.Q8_0
NUMBERS = [0, 1, 255, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "insert", "drop", "number"]),
        # Most of the places are where the head and the vocabulary are.
        st.one_of(st.floats(0, 0.02), st.floats(0, 0.2), st.floats(0, 1)),
        st.integers(0, 255), st.sampled_from(NUMBERS),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
VALUES = st.one_of(
    st.booleans(), st.integers(0, 40), st.sampled_from([2**31 - 1, 2**32 - 1]), st.floats(width=32),
    st.sampled_from(["", "gpt2", "llama", "qwen2", "none", "yarn", "\U0001f984", "x" * 300]),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.lists(st.text(max_size=3), min_size=1, max_size=4),
    st.just(["a"] * 300), st.just([1] * 300), st.just([-1.0] * 300), st.just([float("nan")] * 300),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def original(folder):
    """The bytes of a file that is right."""
    path = folder / "original.gguf"
    gguf_models.write(path, "llama3", kinds={"blk.0.attn_q.weight": Q8_0})
    assert read(path) == "read"
    return path.read_bytes()


def read(path):
    """Whether each of the three readings ends in a result or in an error that names the file."""
    problems = []
    for what in (gguf_config.read, tensors, load_tokenizer):
        try:
            what(path)
        except InputError as error:
            assert str(path) in str(error), error
            assert len(str(error)) < 2000
            problems.append(type(error).__name__)
    return problems[0] if problems else "read"


def tensors(path):
    files = GgufFiles(path)
    for name, value in files.read(files.shapes, jnp.float32).items():
        assert value.shape == files.shapes[name] and np.isfinite(value).all()


def edited(data, edits):
    for kind, place, byte, number in edits:
        at = int(place * len(data))
        if kind == "cut":
            data = data[:at] if byte < 64 else data
        elif kind == "flip":
            data = data[:at] + bytes([byte]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + bytes([byte]) * (byte % 9) + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + byte % 9 :]
        else:
            data = data[:at] + number.to_bytes(8, "little") + data[at + 8 :]
    return data


@given(edits=EDITS)
@fixed_settings(150)
def test_bytes_that_are_other_ones(original, folder, edits):
    path = folder / "edited.gguf"
    path.write_bytes(edited(original, edits))
    event(read(path))


KEYS = [
    *(f"llama.{key}" for key in (
        "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "vocab_size",
        "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length",
        "attention.value_length", "attention.sliding_window", "rope.freq_base", "rope.dimension_count",
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "context_length", "expert_count", "attention.causal", "something_else",
    )),
    *(f"tokenizer.ggml.{key}" for key in (
        "model", "pre", "tokens", "token_type", "merges", "scores", "bos_token_id", "eos_token_id",
        "unknown_token_id", "padding_token_id", "add_bos_token", "add_sep_token", "add_space_prefix",
        "precompiled_charsmap",
    )),
    "general.type", "general.alignment", "split.count", "tokenizer.chat_template",
    "tokenizer.chat_template.x",
]  # fmt: skip


@given(changes=st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), VALUES), max_size=3))
@fixed_settings(80)
def test_values_that_are_other_ones(folder, changes):
    path = folder / "changed.gguf"
    try:
        gguf_models.write(
            path, "llama", **{key.replace(".", "__"): value for key, value in changes.items()}
        )
    except (ValueError, KeyError, TypeError, OverflowError):  # of the writer
        return
    event(read(path))
