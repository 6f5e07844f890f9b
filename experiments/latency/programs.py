"""Forward passes as compiled programs, and whether two of them are the same program.

Section 4.1 of the paper: a merged model has no latency of its own, by construction. That is shown here
without a clock: the program that JAX hands to the compiler, and what the compiler makes of it, are compared
as texts. The weights are arguments of the program, so their values are in neither.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lora_jax import partition
from lora_jax.data.batch import Inputs
from lora_jax.models.decoder import Decoder

# What HLO text says of its sources: tables up to an empty line, and a mark at each instruction.
_TABLES = re.compile(
    r"^(?:FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*\n?", re.MULTILINE
)
_METADATA = re.compile(r', metadata=\{(?:"(?:[^"\\]|\\.)*"|[^"{}])*\}')


class Tokens(NamedTuple):
    """A batch on the device.

    Attributes:
      inputs: token rows, each of one example.
      rows: row of each token whose logits are computed.
      columns: its column.
    """

    inputs: Inputs
    rows: Int[Array, " n"]
    columns: Int[Array, " n"]


def random_tokens(batch: int, length: int, vocabulary: int, outputs: str, seed: int) -> Tokens:
    """Random tokens without padding.

    Args:
      batch: rows.
      length: tokens of a row.
      vocabulary: number of tokens that there are.
      outputs: "all" for the logits of all tokens, "last" for those of the last one of every row.
      seed: of the tokens.
    """
    shape = (batch, length)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, shape).astype(np.int32)
    segments = np.repeat(np.arange(1, batch + 1, dtype=np.int32)[:, None], length, axis=1)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    columns = np.arange(length) if outputs == "all" else np.array([length - 1])
    each = [
        axis.ravel().astype(np.int32) for axis in np.meshgrid(range(batch), columns, indexing="ij")
    ]
    inputs = Inputs(tokens, segments, positions, np.zeros(shape, np.int32))
    placed: Tokens = jax.tree.map(jnp.asarray, Tokens(inputs, each[0], each[1]))
    return placed


def forward(
    model: Decoder, inputs: Inputs, rows: Int[Array, " n"], columns: Int[Array, " n"]
) -> Float[Array, "n vocab"]:
    """What is timed: the logits of the requested tokens."""
    logits: Array = model(inputs, rows, columns)
    return logits


class Program:
    """The forward pass of a model, compiled once for each shape of batch.

    Attributes:
      params: of the model, by path, an argument of the program.
      values: their number.
    """

    def __init__(self, model: nnx.Module):
        """Takes the model's parameters as the program's first argument."""
        structure, self.params = partition.all_frozen(model)
        self.values = partition.count(self.params)

        def run(params: partition.Params, *tokens: Any) -> Array:
            joined = partition.join(structure, {}, params)
            assert isinstance(joined, Decoder)
            return forward(joined, *tokens)

        self._run = jax.jit(run)

    def __call__(self, tokens: Tokens) -> Float[Array, "n vocab"]:
        """The logits of a batch; they may not be there yet, see `jax.block_until_ready`."""
        logits: Array = self._run(self.params, *tokens)
        return logits

    def texts(self, tokens: Tokens) -> tuple[str, str]:
        """The program for this batch as JAX lowers it (StableHLO), and as the compiler leaves it (HLO)."""
        lowered = self._run.lower(self.params, *tokens)
        compiled = lowered.compile().as_text()
        assert compiled is not None  # every compiler that JAX has gives it
        return lowered.as_text(), without_sources(compiled)


def without_sources(text: str) -> str:
    """The text of a compiled program without the names and lines of the Python code that it was made from.

    They are there for profilers, the device runs none of them, and they tell which line called the compiler,
    and whether the program came from JAX's cache of compiled programs.
    """
    return _METADATA.sub("", _TABLES.sub("", text))


def compared(base: Program, merged: Program, tokens: Tokens) -> dict[str, Any]:
    """Whether two programs are one, for the record.

    Args:
      base: of the pre-trained model.
      merged: of the model with a merged update.
      tokens: the batch that both are compiled for.

    Returns:
      `lowered_equal` and `compiled_equal`, and for both kinds of text the SHA-256 of base and merged.
    """
    both = [program.texts(tokens) for program in (base, merged)]
    record: dict[str, Any] = {}
    for kind, *texts in zip(("lowered", "compiled"), *both, strict=True):
        record[f"{kind}_equal"] = texts[0] == texts[1]
        record[f"{kind}_sha256"] = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return record
