"""The mean loss per token of decoders on a text: what rises where a model forgets."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from experiments.runs.language import Validation
from lora_jax import partition
from lora_jax.data import tokenizers
from lora_jax.data.batches import evaluation_batches
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.special_tokens import in_pairs, special_ids
from lora_jax.errors import InputError
from lora_jax.models.architectures import AnyDecoderConfig
from lora_jax.reading import read_text
from lora_jax.training import step

_TOKENS = 1024  # of a batch
_SHORTEST = 2  # tokens of a piece, of which the first is not predicted


class TextLoss:
    """The mean cross-entropy per token of a text in pieces, each of which is read by itself.

    Attributes:
      tokens: how many are predicted: all but the first of every piece.
    """

    def __init__(
        self,
        text: Path,
        folder: Path,
        config: AnyDecoderConfig,
        *,
        length: int,
        special: Collection[tuple[int, int]] = (),
    ):
        """Tokenises the text.

        Args:
          text: file of the text.
          folder: of the model, with its tokenizer.
          config: of the model.
          length: tokens of a piece, at most.
          special: numbers of special tokens of the methods to come, which need room in every piece.

        Raises:
          FileNotFoundError, ValueError: files missing or broken, or the text has less than two tokens.
        """
        self._config = config
        tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
        content = read_text(text)
        tokenizers.check_texts([content], tokenizer, f"--text={text}")
        encoded = tokenizer([content], add_special_tokens=False, verbose=False)
        ids = np.array(encoded["input_ids"][0], np.int32)
        room = max((sum(counts) for counts in special), default=0)
        size = min(length, config.max_length - room)
        if size < _SHORTEST:
            raise InputError(
                f"--length={length} and the model's {config.max_length} positions leave no room for two "
                "tokens; raise --length"
            )
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        pieces = [piece for piece in pieces if len(piece) >= _SHORTEST]
        if not pieces:
            raise InputError(
                f"--text={text} has {len(ids)} tokens, too few for a loss; name a longer text"
            )
        self._rows = TokenisedPairs(pieces, np.ones(len(pieces), np.int32))
        self.tokens = self._rows.outputs(range(len(pieces)))

    def __call__(self, model: nnx.Module, special: tuple[int, int] = (0, 0)) -> float:
        """The loss of a model.

        Args:
          model: a decoder.
          special: numbers of special tokens that its method has.
        """
        rows = in_pairs(self._rows, special_ids(special, self._config.vocab_size))
        longest = int(rows.lengths.max())
        batches = evaluation_batches(rows, self._config.width, longest, _TOKENS)
        structure, params = partition.all_frozen(model)
        predict = step.make_predict_step(structure, Validation.function)
        params = jax.device_put(params, jax.devices()[0])
        sums = [np.asarray(predict({}, params, batch), np.float64) for _, batch in batches]
        return float(sum(sums) / self.tokens)
