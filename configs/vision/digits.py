"""scikit-learn's digits, turned or in other colours: methods on a net pre-trained on upright ones.

    python -m experiments.vision --config=configs/vision/digits.py:rotated,all --workdir=runs/rotated
    python -m experiments.vision --config=configs/vision/digits.py:recoloured,lora_4 --workdir=runs/coloured
    python -m experiments.vision --config=configs/vision/digits.py:rotated,all --workdir=runs/vit \
        --config.model.kind=vit

The argument is the task (`rotated`: by 90 degrees and up to 15 more or less; `recoloured`: dark ink of any
colour on paper of any light colour, where the net has seen white on black) and a method, or `all`. Sizes and
learning rates are ours. See docs/vision.md.
"""

from ml_collections import ConfigDict

from configs.arguments import parse

TASKS = ("rotated", "recoloured")
ALL = ("head", "lora_1", "lora_2", "lora_4", "lora_8", "norms", "full")


def get_config(arg: str = "rotated") -> ConfigDict:
    """Returns the config of `TASK`, or of `TASK,METHOD`; ValueError names the known ones."""
    task, method = parse(arg, ("all", *ALL), "method")
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known are {list(TASKS)}")
    return ConfigDict(
        {
            "task": task,
            "methods": ALL if method == "all" else (method,),
            # Of a ResNet the channels of the first stage, and its blocks; of a ViT the width, and its layers.
            "model": {"kind": "resnet", "width": 16, "depth": 1},
            "data": {
                "size": 8,  # pixels of a side, which the digits have; more enlarges them
                "angle": 90.0,  # of `rotated`, in degrees
                "jitter": 15.0,
                "pretrain_examples": 1000,
                "train_examples": 200,
                "test_examples": 400,
                "split_seed": 0,
            },
            "statistics": "auto",
            "pretrain": {"epochs": 8, "learning_rate": 3e-3},
            # The rate is chosen by the first `rate_seeds` seeds; the others run at that rate alone.
            "learning_rates": (2e-3, 6e-3, 2e-2, 6e-2),
            "rate_seeds": 2,
            "seeds": (0, 1, 2, 3, 4),
            "epochs": 12,
            "batch_size": 25,
        }
    )
