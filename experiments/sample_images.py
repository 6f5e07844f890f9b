"""Draws pictures with a diffusion model, alone or with adapters by weight.

    python -m experiments.sample_images --base=runs/digits --captions="a three,a seven" --output=plain.png
    python -m experiments.sample_images --base=runs/digits --captions="a three,a seven" --output=mixed.png \\
        --adapters=slanted=runs/slanted/rank_4,thick=runs/thick/rank_4 --weights=1,0.5

A row of the grid for each caption, with `--count` pictures. Several adapters are summed exactly (see
docs/combining.md); a weight is the scale of the adapter, and --weights=0.5 of one alone is half of it. Equal
--seed, equal noise: pictures of different adapters can be compared one by one. --nomerge leaves the updates
beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags, logging
from flax import nnx

from experiments.diffusion import bases
from experiments.diffusion.drawing import Drawing, draw
from experiments.runs import command_line, named_adapters
from lora_jax import partition
from lora_jax.adapter_set import AdapterSet
from lora_jax.adapters import Adapter
from lora_jax.diffusion.grids import grid, write_png
from lora_jax.diffusion.samplers import SAMPLERS, Sampler
from lora_jax.errors import InputError
from lora_jax.files import check_output, make_folder
from lora_jax.low_rank.merge import merge


def with_adapters(
    model: nnx.Module,
    adapters: Mapping[str, Adapter],
    weights: Mapping[str, float],
    merged: bool = True,
) -> nnx.Module:
    """The model with the weighted sum of adapters; all count once without weights.

    Merged, a weight is W + sum of w (W of an adapter - W), exact for whatever merges, rows of words too.

    Args:
      model: the base.
      adapters: by name.
      weights: by name.
      merged: whether they are in the weights, or beside them.

    Raises:
      InputError: an adapter is of another base, a weight of none of them, or they do not add up.
    """
    weights = weights or dict.fromkeys(adapters, 1.0)
    several = AdapterSet(model)
    for name, adapter in adapters.items():
        several.add(name, adapter)
    if not merged and adapters:
        return several.model(dict(weights))
    start = partition.parameters(model)
    total = dict(start)
    for name, weight in weights.items():
        alone = partition.parameters(merge(several.model(name)))
        total = {
            path: value + weight * (alone[path] - start[path]) for path, value in total.items()
        }
    return partition.join(partition.all_frozen(model)[0], {}, total)


def sample(
    base: bases.Base, model: nnx.Module, captions: Sequence[str], count: int, how: Drawing
) -> np.ndarray:
    """Pictures of captions, `count` of each; the same noise for every caption."""
    texts = [caption for caption in captions for _ in range(count)]
    return draw(base, model, texts, how)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    logging.set_verbosity(logging.WARNING)
    output, captions, count = Path(_OUTPUT.value), _CAPTIONS.value or [], _COUNT.value
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        if output.suffix.lower() != ".png":
            raise InputError(f"--output={output}: the name must end in .png")
        check_output(output, flag="--output")
        adapters = named_adapters.named(_ADAPTERS.value)
        weights = named_adapters.weights(_WEIGHTS.value, adapters)
        base = bases.read(_BASE.value or "", _SIZE.value, "float32")
        model = with_adapters(base.model, adapters, weights, _MERGE.value)
        sampler = cast(Sampler, _SAMPLER.value)
        how = Drawing(sampler, _STEPS.value, _GUIDANCE.value, _SEED.value)
        pictures = sample(base, model, captions, count, how)
        make_folder(output.parent)
        write_png(output, grid(pictures, count, max(1, 32 // pictures.shape[1])))
        command_line.say(f"{len(pictures)} pictures: {output}")


if __name__ == "__main__":
    _BASE = flags.DEFINE_string("base", None, "A run of experiments.diffusion, or a folder.")
    _CAPTIONS = flags.DEFINE_list("captions", None, "Captions, separated by commas.")
    _OUTPUT = flags.DEFINE_string("output", "samples.png", "File of the grid.")
    _ADAPTERS = flags.DEFINE_list("adapters", [], "NAME=DIR, or DIR, separated by commas.")
    _WEIGHTS = flags.DEFINE_list("weights", [], "A number for each adapter, or NAME=NUMBER.")
    _COUNT = flags.DEFINE_integer("count", 10, "Pictures of each caption.", lower_bound=1)
    _SAMPLER = flags.DEFINE_enum("sampler", "ddim", list(SAMPLERS), "How pictures are drawn.")
    _STEPS = flags.DEFINE_integer("steps", 20, "Steps of the sampler.", lower_bound=1)
    _GUIDANCE = flags.DEFINE_float("guidance", 2.0, "Of classifier-free guidance; 1 is without.")
    _SEED = flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
    _SIZE = flags.DEFINE_integer(
        "size", 512, "Pixels of Stable Diffusion's pictures.", lower_bound=8
    )
    _MERGE = flags.DEFINE_bool("merge", True, "Merge the adapters into the base first.")
    flags.mark_flags_as_required(["base", "captions"])
    command_line.run(main)
