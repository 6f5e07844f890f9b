"""Captions by words, and the folder of a small model."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax import partition
from lora_jax.diffusion import captioned
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.diffusion.words import Words
from lora_jax.errors import InputError
from lora_jax.models.diffusion.unet_config import UNetConfig

WORDS = Words(("", "a", "red", "cat"), length=3)
CONFIG = UNetConfig(
    sample_size=4, in_channels=1, out_channels=1, block_out_channels=(4, 8),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=2,
    cross_attention_dim=4, attention_head_dim=2, use_linear_projection=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def made():
    schedule = NoiseSchedule(prediction_type="v_prediction", num_train_timesteps=10)
    return captioned.new(WORDS, CONFIG, schedule, seed=0)


def test_captions_become_rows():
    np.testing.assert_array_equal(
        WORDS.encode(["a Red cat", "cat", ""]), [[1, 2, 3], [3, 0, 0], [0, 0, 0]]
    )
    with pytest.raises(InputError, match="no word 'dog'.*its words are a, red, cat"):
        WORDS.encode(["a dog"])
    with pytest.raises(InputError, match="has 4 words; the model reads 3"):
        WORDS.encode(["a red red cat"])
    with pytest.raises(InputError, match="must be different"):
        Words(("", "a", "a"), 2)


def test_a_folder_gives_the_model_back(made, tmp_path):
    made.save(tmp_path)
    read = captioned.load(tmp_path)
    assert (read.words, read.schedule, read.config) == (made.words, made.schedule, made.config)
    before, after = (partition.parameters(m.model) for m in (made, read))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)
    x, times, rows = jnp.ones((2, 4, 4, 1)), jnp.array([1, 5]), WORDS.encode(["a cat", ""])
    output = read.model(x, times, jnp.asarray(rows))
    assert output.shape == x.shape and not np.allclose(output[0], output[1])


def test_broken_folders_are_refused(made, tmp_path):
    made.save(tmp_path)
    path = tmp_path / captioned.CONFIG
    values = json.loads(path.read_text())
    for change, error in (
        ({"kind": "other"}, "kind"),
        ({"words": ["a"]}, "words must be different"),
        ({"unet": {**values["unet"], "block_out_channels": [4, 12]}}, "found"),
        ({"unet": {**values["unet"], "width": 3}}, "width"),
    ):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(InputError, match=error):
            captioned.load(tmp_path)
