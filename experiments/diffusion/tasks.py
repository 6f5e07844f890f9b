"""The two tasks of `experiments.diffusion`: a model from the start, and adapters of one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from experiments.diffusion import bases, data, scores
from experiments.diffusion.bases import Base
from experiments.diffusion.drawing import Drawing, draw
from experiments.diffusion.run import Run, Training, captions_of
from experiments.runs import fields, folder
from experiments.runs.settings import train_settings
from lora_jax import files, methods
from lora_jax.data import digits
from lora_jax.diffusion import captioned
from lora_jax.diffusion.captioned import Captioned, CaptionedUNet
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.errors import InputError
from lora_jax.models.diffusion.unet_config import CROSS_DOWN, CROSS_UP, DOWN, UP, UNetConfig
from lora_jax.reading import read_object
from lora_jax.run_files import MODEL
from lora_jax.run_folder import SETTINGS

KEEPS = "lora"  # method whose rank `ranks` replaces


def unet_config(config: ConfigDict) -> UNetConfig:
    """Sizes of the U-Net that a config describes."""
    model = config.model
    if len(model.attends) != len(model.channels):
        raise InputError(
            f"config.model.attends has {len(model.attends)} values, and config.model.channels "
            f"{len(model.channels)}: one for each level"
        )
    return UNetConfig(
        sample_size=config.data.side, in_channels=1, out_channels=1,
        down_block_types=tuple(CROSS_DOWN if attends else DOWN for attends in model.attends),
        up_block_types=tuple(CROSS_UP if attends else UP for attends in model.attends[::-1]),
        block_out_channels=tuple(model.channels), layers_per_block=model.layers,
        norm_num_groups=model.groups, cross_attention_dim=model.words,
        attention_head_dim=model.heads, use_linear_projection=True,
    )  # fmt: skip


def learn(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains a new model of digits, or reads a finished run back; the run record."""
    fields.check_config(config, fields.DIFFUSION)

    def read() -> tuple[data.Shown, dict[str, str]]:
        shown = data.whole(config)
        given = {"pictures": shown.digest}
        folder.check_inputs(workdir, given)
        return shown, given

    def train(read: tuple[data.Shown, dict[str, str]]) -> dict[str, Any]:
        shown, given = read
        schedule = NoiseSchedule(**config.noise.to_dict())
        made = captioned.new(data.WORDS, unet_config(config), schedule, config.seed)
        captions, contents = captions_of(shown.contents, config.samples.count)

        def save(model: nnx.Module) -> None:
            assert isinstance(model, CaptionedUNet)
            with files.replaced_folder(workdir / MODEL) as new:
                Captioned(model, made.words, made.schedule).save(new)

        run = Run(
            task="digits", config=config, base=bases.of_captioned(made, "a new model"),
            method=methods.full(), shown=shown, inputs=given,
            judge=functools.partial(scores.scorer, workdir / scores.FOLDER, config.data.side, keep=True),
            captions=captions, contents=contents, save=save,
        )  # fmt: skip
        return Training(run, workdir).train()

    return folder.read_or_train(workdir, config, read, train)


def adapt_all(config: ConfigDict, workdir: Path) -> dict[Path, dict[str, Any]]:
    """Adapts a base with every rank of the config; run records by the folder of the run."""
    fields.check_config(config, fields.STYLE, fields.OPEN)
    if not config.ranks:
        return {workdir: adapt(config, workdir)}
    if config.method.get("name") != KEEPS:
        raise InputError(
            f"config.ranks are those of {KEEPS!r}, and config.method is {config.method.get('name')!r}; set "
            "config.ranks to ()"
        )
    results = {}
    for rank in config.ranks:
        of_rank = copy.deepcopy(config)
        of_rank.ranks, of_rank.method.rank = (), rank
        place = workdir / f"rank_{rank}"
        results[place] = adapt(of_rank, place)
    return results


def known(base: Base) -> tuple[int, ...]:
    """The digits that a base has learned; () if it is no model of digits."""
    if base.words is None or not folder.is_run(Path(base.name)):
        return ()
    settings = read_object(Path(base.name) / SETTINGS)
    left_out = settings.record("data").get("left_out", list)
    return tuple(number for number in range(10) if number not in left_out)


def adapt(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Adapts a base to the pictures of a config, or reads a finished run back; the run record."""

    def read() -> tuple[Base, data.Shown, dict[str, str]]:
        dtype = train_settings(config).dtype or "float32"
        base = bases.read(config.base, config.data.size, dtype)
        shown = data.few(config, base, known(base))
        given = {"pictures": shown.digest, "base": base.digest}
        folder.check_inputs(workdir, given)
        return base, shown, given

    def train(read: tuple[Base, data.Shown, dict[str, str]]) -> dict[str, Any]:
        base, shown, given = read
        method = methods.create(**config.method.to_dict())
        texts, contents = config.samples.get("captions", ()) or shown.captions[:1], None
        texts = [text for text in texts for _ in range(config.samples.count)]
        judge = None
        if shown.contents:
            both = sorted({*shown.contents, *known(base)})
            texts, contents = captions_of(both, config.samples.count)
            place = Path(base.name) / scores.FOLDER
            judge = functools.partial(scores.scorer, place, base.size, keep=False)
        run = Run(
            task="style", config=config, base=base, method=method, shown=shown, inputs=given,
            prior=_prior(config, base) if config.prior.weight else None, judge=judge, captions=texts,
            contents=contents,
        )  # fmt: skip
        return Training(run, workdir).train()

    return folder.read_or_train(workdir, config, read, train)


def _prior(config: ConfigDict, base: Base) -> Callable[[], tuple[np.ndarray, list[str]]]:
    """Draws the prior's captions with the base, before it is adapted (Ruiz et al. 2023, section 3.3)."""
    given = config.prior
    captions = list(given.captions) or [digits.caption(number) for number in known(base)]
    if not captions:
        raise InputError(
            f"config.prior.weight is {given.weight:g}, but config.prior.captions names none: give the "
            "captions of what the base shall keep, such as ('a dog',)"
        )
    texts = [captions[number % len(captions)] for number in range(given.count)]
    how = Drawing(
        config.samples.sampler, config.samples.steps, config.samples.guidance, config.seed + 1
    )
    return lambda: (draw(base, base.model, texts, how), texts)
