"""The fields of configs of experiments.vision."""

from __future__ import annotations

from experiments.runs.field import Field, Fields
from lora_jax.ranges import SEED, Number, OneOf, Several, Text, Whole

_RATE = Number(above=0)
_COUNT = Whole(most=1796)  # scikit-learn has 1797 digits

VISION: Fields = {
    "task": Field(OneOf(("rotated", "recoloured")), "what the digits are turned into"),
    "methods": Field(Several(of=Text()), "head, norms, full, or lora_RANK"),
    "model.kind": Field(
        OneOf(("resnet", "vit")),
        "the net: LoRA adapts the convolutions of a ResNet, the linear layers of a ViT",
    ),
    "model.width": Field(
        Whole(most=1024), "channels of a ResNet's first stage, or a third of a ViT's width"
    ),
    "model.depth": Field(Whole(most=100), "blocks of each of a ResNet's three stages, or layers of a ViT"),
    "data.size": Field(Whole(least=8, most=256), "pixels of a side of a picture"),
    "data.angle": Field(Number(least=-360, most=360), "degrees that `rotated` turns by"),
    "data.jitter": Field(Number(least=0, most=180), "degrees that it turns by besides, at random"),
    "data.pretrain_examples": Field(_COUNT, "upright digits to pre-train on, a tenth of them held out"),
    "data.train_examples": Field(_COUNT, "digits to adapt with, drawn anew for every seed"),
    "data.test_examples": Field(_COUNT, "digits that scores are of; what is left chooses rate and epoch"),
    "data.split_seed": Field(SEED, "of the choice of digits, and of what becomes of them"),
    "statistics": Field(
        OneOf(("auto", "stay", "move")),
        "those of BatchNorm while a method trains; auto: they stay as pre-trained, but with norms and full",
    ),
    "pretrain.epochs": Field(Whole(), "passes over the upright digits"),
    "pretrain.learning_rate": Field(_RATE, "of pre-training"),
    "learning_rates": Field(Several(of=_RATE), "grid of every method"),
    "rate_seeds": Field(Whole(most=1000), "seeds, the first ones, that choose the learning rate"),
    "seeds": Field(Several(of=SEED), "runs of every method at its learning rate"),
    "epochs": Field(Whole(), "passes over the examples to adapt with"),
    "batch_size": Field(Whole(most=1796), "pictures of a batch"),
}  # fmt: skip
