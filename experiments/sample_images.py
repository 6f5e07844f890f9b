"""Draws pictures with a diffusion model, alone or with adapters by weight.

    python -m experiments.sample_images --base=runs/digits --captions="a three,a seven" --output=plain.png
    python -m experiments.sample_images --base=runs/digits --captions="a three,a seven" --output=mixed.png \\
        --adapters=slanted=runs/slanted/rank_4,thick=runs/thick/rank_4 --weights=1,0.5
    python -m experiments.sample_images --base=FOLDER --captions='"a cat, painted",a dog' --output=cat.png \\
        --adapters=theirs.safetensors --weights=0.8

A row of the grid for each caption, with `--count` pictures; a caption with commas stands in quotation marks.
An adapter is a run, an adapter folder, or of Stable Diffusion a style file of diffusers or kohya's scripts,
or the folder that `experiments.convert from_style` made of one; what it adapts of the text encoder counts
too. A weight scales an adapter, 1 where none is given; several are summed exactly, W + sum of w (W of an
adapter - W), whatever they change. Equal --seed, equal noise: pictures of different adapters can be compared
one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from absl import flags
from flax import nnx

from experiments.convert.styles import adapters_of
from experiments.diffusion import bases
from experiments.diffusion.bases import Base
from experiments.diffusion.drawing import Drawing, draw
from experiments.runs import command_line, named_adapters
from lora_jax import partition
from lora_jax.adapters import Adapter, attach, load_adapter
from lora_jax.diffusion.grids import grid, write_png
from lora_jax.diffusion.samplers import SAMPLERS, Sampler
from lora_jax.errors import InputError
from lora_jax.files import check_output, make_folder
from lora_jax.interop import diffusion
from lora_jax.interop.diffusion.keys import TEXT_ENCODER, UNET
from lora_jax.interop.diffusion.reading import FILE
from lora_jax.low_rank.merge import merge
from lora_jax.patterns import some


def adapters_at(place: Path, base: Base) -> dict[str, Adapter]:
    """The adapters at a place by what they adapt: `unet`, which a model of digits is too, or `text_encoder`.

    Raises:
      MissingFileError, FileError, InputError: there are none, or of another base.
    """
    if base.text_encoder is None:
        return {UNET: load_adapter(place)}
    if place.is_file() or (place / FILE).is_file():
        return diffusion.read(place, {UNET: base.model, TEXT_ENCODER: base.text_encoder})
    return adapters_of(place)


def with_adapters(
    base: Base, adapters: Mapping[str, Mapping[str, Adapter]], weights: Mapping[str, float]
) -> Base:
    """The base with the weighted sum of adapters in its weights.

    Args:
      base: without adapters.
      adapters: by name, and then as `adapters_at` has them.
      weights: by name; 1 where there is none.

    Raises:
      InputError: an adapter is of another base, or a weight of none of them.
    """
    if odd := sorted(weights.keys() - adapters.keys()):
        raise InputError(
            f"weights are given for {some(odd)}; the adapters are {some(list(adapters))}"
        )

    def adapted(model: nnx.Module, part: str) -> nnx.Module:
        start = partition.parameters(model)
        total = dict(start)
        for name, found in adapters.items():
            if part not in found:
                continue
            styled = attach(model, found[part], where=f"the adapter {name!r}")
            weight = weights.get(name, 1.0)
            for path, value in partition.parameters(merge(styled)).items():
                total[path] = total[path] + weight * (value - start[path])
        return partition.join(partition.all_frozen(model)[0], {}, total)

    texts = base.text_encoder and adapted(base.text_encoder, TEXT_ENCODER)
    return dataclasses.replace(base, model=adapted(base.model, UNET), text_encoder=texts)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    output, captions, count = Path(_OUTPUT.value), _CAPTIONS.value or [""], _COUNT.value
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        if output.suffix.lower() != ".png":
            raise InputError(f"--output={output}: the name must end in .png")
        check_output(output, flag="--output")
        places = named_adapters.places(_ADAPTERS.value)
        weights = named_adapters.weights(_WEIGHTS.value, places)
        base = bases.read(_BASE.value or "", _SIZE.value, "float32")
        adapters = {name: adapters_at(Path(place), base) for name, place in places.items()}
        base = with_adapters(base, adapters, weights)
        sampler = cast(Sampler, _SAMPLER.value)
        how = Drawing(sampler, _STEPS.value, _GUIDANCE.value, _SEED.value)
        texts = [caption for caption in captions for _ in range(count)]
        pictures = draw(base, base.model, texts, how)
        make_folder(output.parent)
        write_png(output, grid(pictures, count, max(1, 32 // pictures.shape[1])))
        command_line.say(f"{len(pictures)} pictures: {output}")


if __name__ == "__main__":
    _BASE = flags.DEFINE_string("base", None, "A run of experiments.diffusion, or a folder.")
    _CAPTIONS = flags.DEFINE_list("captions", None, "Captions, separated by commas.")
    _OUTPUT = flags.DEFINE_string("output", "samples.png", "File of the grid.")
    _ADAPTERS = flags.DEFINE_list("adapters", [], "NAME=PLACE, or PLACE, separated by commas.")
    _WEIGHTS = flags.DEFINE_list("weights", [], "A number for each adapter, or NAME=NUMBER.")
    _COUNT = flags.DEFINE_integer("count", 10, "Pictures of each caption.", lower_bound=1)
    _SAMPLER = flags.DEFINE_enum("sampler", "ddim", list(SAMPLERS), "How pictures are drawn.")
    _STEPS = flags.DEFINE_integer("steps", 20, "Steps of the sampler.", lower_bound=1)
    _GUIDANCE = flags.DEFINE_float("guidance", 2.0, "Of classifier-free guidance; 1 is without.")
    _SEED = flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
    _SIZE = flags.DEFINE_integer(
        "size", 512, "Pixels of Stable Diffusion's pictures.", lower_bound=8
    )
    flags.mark_flags_as_required(["base", "captions"])
    command_line.run(main)
