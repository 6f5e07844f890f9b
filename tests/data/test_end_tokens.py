"""The end tokens of a model: those at which transformers and llama.cpp stop."""

import json

import gguf
import gguf_models
import pytest
import transformers
import tune_files

from lora_jax.data.chat_format import ChatFormat
from lora_jax.data.chat_templates import of_tokenizer
from lora_jax.data.conversations import Example, Message
from lora_jax.data.end_tokens import end_tokens
from lora_jax.data.formats import PlainFormat
from lora_jax.errors import FileError


@pytest.mark.parametrize(
    ("of_generation", "of_config", "expected"),
    [
        ([7, 5, 7], 3, (7, 5)),
        (7, [3, 4], (7,)),
        (None, [3, 4], (3, 4)),
        (None, 3, (3,)),
        (None, None, ()),
    ],
)
def test_folders_end_where_transformers_does(tmp_path, of_generation, of_config, expected):
    config = {"model_type": "gpt2", "eos_token_id": of_config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if of_generation is not None:
        transformers.GenerationConfig(eos_token_id=of_generation).save_pretrained(tmp_path)
        theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    else:
        model_config = transformers.GPT2Config(eos_token_id=of_config)
        theirs = transformers.GenerationConfig.from_model_config(model_config)
    found = end_tokens(tmp_path, 10)
    assert found == expected
    ids = theirs.eos_token_id
    assert set(found) == set(ids if isinstance(ids, list) else [] if ids is None else [ids])


@pytest.mark.parametrize("wrong", [10, -1, True, "7", [3, None], [[3]]])
def test_ids_without_a_row_are_refused(tmp_path, wrong):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(
        FileError, match="generation_config.json, eos_token_id: found .* from 0 to 9"
    ):
        end_tokens(tmp_path, 10)


def test_gguf_files_have_ends_of_turns_and_of_messages(tmp_path):
    keys = gguf.Keys.Tokenizer
    changes = {keys.EOT_ID.replace(".", "__"): 9, keys.EOM_ID.replace(".", "__"): 2}
    gguf_models.write(tmp_path / "a.gguf", "llama", **changes)
    gguf_models.write(tmp_path / "b.gguf", "llama")
    assert end_tokens(tmp_path / "a.gguf", 300) == (2, 9)
    assert end_tokens(tmp_path / "b.gguf", 300) == (2,)
    gguf_models.write(tmp_path / "c.gguf", "llama", **{keys.EOT_ID.replace(".", "__"): 300})
    with pytest.raises(FileError, match="eot_token_id: found 300"):
        end_tokens(tmp_path / "c.gguf", 300)


def test_more_ends_change_no_row_that_is_learned():
    made = tune_files.tokenizer()
    plain = PlainFormat(made), PlainFormat(made, ends=(5, 0))
    row = tune_files.pairs(1)[0]
    turns = (Message("user", row["prompt"]), Message("assistant", row["completion"]))
    example = Example(turns, "a file, line 1")
    with of_tokenizer(made) as template:
        chat = ChatFormat(made, template), ChatFormat(made, template, (0, 5))
        assert chat[1].ends == (*chat[0].ends, 0, 5) and plain[1].ends == (0, 5)
        for one, other in (chat, plain):
            assert one.rows([example])[0].ids == other.rows([example])[0].ids
