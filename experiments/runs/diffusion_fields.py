"""Fields of the configs of `experiments.diffusion`: a small model from the start, and adapters."""

from __future__ import annotations

from experiments.runs.field import Field, Fields
from lora_jax.data.digits import PLAIN, SIDES, STYLES
from lora_jax.diffusion.samplers import SAMPLERS
from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.ranges import SEED, Flag, Number, OneOf, OrNone, Several, Text, Whole, ranges_of

DIGITS = "digits"  # `data.source`: those of scikit-learn
_CLASSES = Several(of=Whole(least=0, most=9), empty="none")
_NOISE = ("num_train_timesteps", "beta_schedule", "prediction_type", "clip_sample")
_SHARED: Fields = {
    "seed": Field(SEED, "of initial values, of the noise and of the order of the pictures"),
    "caption_dropout": Field(
        Number(least=0, most=1), "share of the captions that are emptied, for classifier-free guidance"
    ),
    "snr_gamma": Field(
        OrNone(of=Number(above=0), none="equal weights"),
        "of Min-SNR weights (Hang et al. 2023): the signal-to-noise ratio counts no more",
    ),
    "data.repeats": Field(Whole(most=10**6), "times that an epoch shows every picture"),
    "samples.sampler": Field(OneOf(SAMPLERS), "of the pictures that are drawn"),
    "samples.steps": Field(Whole(most=10**4), "of the sampler"),
    "samples.guidance": Field(Number(least=0), "of classifier-free guidance; 1 is without"),
    "samples.count": Field(Whole(most=1000), "pictures of each caption, drawn after every epoch and scored"),
    "samples.seed": Field(SEED, "of their noise"),
}  # fmt: skip
MODEL_FIELDS: Fields = {
    **_SHARED,
    **{f"noise.{name}": Field(allowed, "see `NoiseSchedule`")
       for name, allowed in ranges_of(NoiseSchedule).items() if name in _NOISE},
    "model.channels": Field(Several(of=Whole(most=2**13), different=False), "of each level of the U-Net"),
    "model.attends": Field(
        Several(of=Flag(), different=False), "whether each level has attention, to its pixels and to captions"
    ),
    "model.layers": Field(Whole(most=100), "ResNet blocks of a level"),
    "model.heads": Field(Whole(most=2**10), "of attention"),
    "model.groups": Field(Whole(most=2**10), "of channels that are normalised together"),
    "model.words": Field(Whole(most=2**13), "width of the table of words"),
    "data.side": Field(OneOf(SIDES), "height and width of the digits in pixels"),
    "data.left_out": Field(_CLASSES, "digits that the model shall not learn"),
}  # fmt: skip
STYLE_FIELDS: Fields = {
    **_SHARED,
    "base": Field(
        Text(), "a run of experiments.diffusion, or a folder of Stable Diffusion as diffusers saves it"
    ),
    "ranks": Field(
        Several(of=Whole(), empty="that of `method`"), "a run for each, in DIR/rank_R, and a page"
    ),
    "data.source": Field(Text(), "`digits`, or a folder of pictures with captions"),
    "data.caption": Field(
        Text(empty="those of the folder"), "of all pictures of a folder, in place of its own captions"
    ),
    "data.size": Field(Whole(most=2**13), "height and width in pixels of the pictures of a folder"),
    "data.style": Field(OneOf((PLAIN, *STYLES)), "of digits"),
    "data.classes": Field(
        Several(of=Whole(least=0, most=9), empty="all that the base knows"), "the digits that are shown"
    ),
    "data.count": Field(Whole(most=10**4), "pictures that are shown, from each class in turn"),
    "prior.weight": Field(
        Number(least=0), "of the loss on what the base draws (DreamBooth's prior); 0: none"
    ),
    "prior.count": Field(Whole(most=10**5), "pictures that the base draws for it"),
    "prior.captions": Field(
        Several(of=Text(), empty="all classes of the base"), "of these pictures"
    ),
    "samples.captions": Field(
        Several(of=Text(empty="no caption"), empty="that of the first picture"),
        "of what is drawn of other pictures than digits", False,
    ),
}  # fmt: skip
