"""Tables of a user's own for the tests of experiments.classify and experiments.predict."""

import csv

import numpy as np

from configs.classify import minilm

WORDS = "the a cat dog tree runs sleeps near under red blue old new house river".split()  # noqa: SIM905
CLASSES = ("cat, or dog", "neither", "tree")


def rows(count=90, seed=0):
    """Texts of three classes, which one word of a text tells apart."""
    random = np.random.default_rng(seed)
    result = []
    for i in range(count):
        words = [*random.choice(WORDS[5:], 5), ("cat", "house", "tree")[i % 3], str(i)]
        result.append({"text": " ".join(random.permutation(words)), "label": CLASSES[i % 3]})
    return result


def write(path, table):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def config(model, train, method="lora", **fields):
    values = minilm.get_config(method)
    values.update_from_flattened_dict({
        "model.name": str(model), "data.train": (str(train),), "data.max_length": 32, "batch_size": 8,
        "epochs": 2, "log_every": 1, "learning_rate": 1e-2, "data.held_out_share": 0.3,
    })  # fmt: skip
    values.update_from_flattened_dict(fields)
    return values
