"""Models as folders that Hugging Face's programs read: config.json and model.safetensors.

The way back is `lora_jax.models.hub`, which offers these functions, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lora_jax.arguments import Kind, takes
from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.files import make_folder, to_json, write_bytes, write_pieces
from lora_jax.models import published
from lora_jax.models.decoder import Decoder
from lora_jax.models.decoder_classifier import DecoderClassifier
from lora_jax.models.encoder import Classifier
from lora_jax.models.published import NO_LAYOUT

_CLASSIFIER = Kind(
    (Classifier, DecoderClassifier), f"a Classifier or a DecoderClassifier; {NO_LAYOUT}"
)
_ENCODER = Kind((Classifier,), f"a Classifier, whose encoder is saved; {NO_LAYOUT}")
_DECODER = Kind((Decoder,), f"a Decoder; {NO_LAYOUT}")


@takes(model=_DECODER)
def save_decoder(folder: str | os.PathLike[str], model: Decoder, **settings: Any) -> None:
    """Writes config.json and model.safetensors as Hugging Face has them for the architecture.

    `load_decoder` and `from_pretrained` of the classes of transformers read the folder; tokenizer files go
    beside them. The matrices of a quantised model are written as bitsandbytes packs them.

    Args:
      folder: is made if it is not there.
      model: a decoder.
      settings: further values of config.json, such as `eos_token_id`.

    Raises:
      TypeError: a model of another kind, which has no published layout.
      ValueError: a method inserted something or cut the layers, or layers are packed in forms that
        published files have no place for.
    """
    _save(Path(folder), published.tensors(model), {**published.config(model), **settings})


@takes(model=_CLASSIFIER)
def save_classifier(
    folder: str | os.PathLike[str],
    model: Classifier | DecoderClassifier,
    *,
    classes: Sequence[str] = (),
    **settings: Any,
) -> None:
    """The same for a classifier, as transformers' `...ForSequenceClassification` reads it.

    Args:
      folder: is made if it is not there.
      model: its head has an output for every class, or one for regression.
      classes: names in the order of the outputs; () for such as transformers makes up.
      settings: further values of config.json, such as `pad_token_id`.

    Raises:
      ValueError: see `save_decoder`; or there are not as many names as outputs, or two alike.
    """
    tensors = published.tensors(model)
    outputs = model.head.score if isinstance(model, DecoderClassifier) else model.head.output
    count = outputs.kernel.shape[-1]
    texts = [f"LABEL_{i}" for i in range(count)] if len(classes) == 0 else list(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in texts):
        raise InputTypeError(f"classes must be a list of texts, got {brief(classes)}")
    if len(texts) != count or len(set(texts)) != count:
        raise InputError(
            f"classes must be {count} different names, one for each output of the head; got {brief(texts)}"
        )
    names = dict(enumerate(texts))
    config = {
        **published.config(model),
        "id2label": {str(i): name for i, name in names.items()},
        "label2id": {name: i for i, name in names.items()},
        "problem_type": "regression" if count == 1 else "single_label_classification",
    }
    _save(Path(folder), tensors, {**config, **settings})


@takes(model=_ENCODER)
def save_encoder(folder: str | os.PathLike[str], model: Classifier, **settings: Any) -> None:
    """The same for an encoder without its head, as transformers' `AutoModel` reads it."""
    config = published.config(model, head=False)
    _save(Path(folder), published.tensors(model, head=False), {**config, **settings})


def _save(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Writes weights and then config.json: a folder in which that failed has none, and is no model."""
    try:
        text = (to_json(config) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"settings that config.json cannot hold: {error}") from error
    make_folder(folder)
    old = folder / "config.json"

    def weights() -> Iterator[bytes]:
        yield save(dict(tensors), {"format": "pt"})
        # They are on the disk, and take their place next: the settings of others shall not stand by them.
        old.unlink(missing_ok=True)

    write_pieces(folder / "model.safetensors", weights())
    write_bytes(old, text)
