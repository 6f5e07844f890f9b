"""The key quantization_config of config.json, which says what bitsandbytes has packed."""

from __future__ import annotations

import json

import bitsandbytes_folders as folders
import pytest

from lora_jax.errors import FileError, InputError
from lora_jax.models import hub
from lora_jax.models.model_files import WEIGHTS

pytest.importorskip("bitsandbytes")


def read(folder, base_format):
    config = hub.read_decoder_config(folder, base_format=base_format)
    return hub.check(folder, config)


def packing(**changes):
    def change(config):
        return {**config, "quantization_config": config["quantization_config"] | changes}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (packing(quant_method="gptq"), "quant_method: found 'gptq', expected 'bitsandbytes'.*from GGUF"),
        (packing(quant_method="awq"), "quant_method: found 'awq'"),
        (packing(quant_method="fp8"), "quant_method: found 'fp8'"),
        (packing(bnb_4bit_quant_storage="bfloat16"), "quant_storage: found 'bfloat16', expected 'uint8'"),
        (packing(load_in_8bit=True), "load_in_4bit: found True both there"),
        (packing(load_in_4bit=False), "load_in_4bit: found False both"),
        (packing(load_in_4bit=False, load_in_8bit=True), "quantization_config: found 8 bits.*files: 4 bits"),
        (packing(load_in_4bit="yes"), "load_in_4bit: found 'yes', expected true or false"),
        (lambda c: {**c, "quantization_config": {"bits": 4}}, "quant_method: found nothing"),
        (lambda c: {**c, "quantization_config": 3}, "quantization_config: found 3, expected an object"),
    ],
)  # fmt: skip
def test_other_packing_is_refused_by_name(tmp_path, change, message):
    folder = folders.rewrite("nf4", tmp_path, config=change)
    with pytest.raises(FileError, match=message):
        read(folder, "float")


def test_config_and_files_agree_on_whether_something_is_packed(tmp_path):
    packed = folders.folder("nf4")
    quantised = json.loads((packed / "config.json").read_text())["quantization_config"]
    plain = folders.folder("nf4").with_name("nf4, plain")
    values = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "quantization_config": quantised}))
    (tmp_path / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes())
    with pytest.raises(FileError, match="quantization_config: found 4 bits, expected.*files: none"):
        read(tmp_path, "float")
    with pytest.raises(InputError, match="no packed tensor that this reads.*Choose one of nf4"):
        read(plain, "stored")
    # The tensors say everything themselves; old versions wrote no method.
    bare = folders.rewrite("nf4", tmp_path, config=lambda c: {**c, "quantization_config": None})
    assert read(bare, "stored") == ()
    old = folders.rewrite("nf4", tmp_path, config=_without_method)
    assert read(old, "stored") == ()


def _without_method(config):
    kept = {k: v for k, v in config["quantization_config"].items() if k != "quant_method"}
    return {**config, "quantization_config": kept}
