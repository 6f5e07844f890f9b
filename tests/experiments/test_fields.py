"""Every field of every config has a range, the page shows them, and what is outside is refused early."""

import importlib
import inspect
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import classify, glue, nlg, pretrain, settings
from experiments.runs import fields
from experiments.runs.latency_fields import LATENCY, LATENCY_OPEN
from experiments.runs.method_fields import METHOD
from experiments.runs.prompting_fields import PROMPTING
from experiments.runs.run import run_all
from experiments.runs.tune import TuneTask
from experiments.runs.vision_fields import VISION
from experiments.subspace.analysis import analyse
from experiments.sweep.points import points
from lora_jax import methods
from lora_jax.errors import InputError
from lora_jax.methods.registry import CONSTRUCTORS
from lora_jax.ranges import LARGEST
from lora_jax.run_folder import flat

ROOT = Path(__file__).parents[2]
_HELPERS = {
    "__init__", "common", "arguments", "training", "record", "folders", "glue_runs", "nlg_runs", "table_12",
}  # fmt: skip
_ARGUMENTS = {
    "glue": "rte",
    "nlg": "e2e",
    "sweep": "rte",
    "subspace": "runs/r8",
    "vision": "rotated",
}
_OF_FILE = {"minilm_weights": "rte,qv,8", "table_18": "small", "tune_rates": "small",
            "smollm2_rates": "lora", "gpt2_xl": "samsum,full", "llama": "wikisql,bitfit",
            "table_15": "mnli_text", "table_16": "100"}  # fmt: skip


def _files():
    return sorted(path for path in (ROOT / "configs").rglob("*.py") if path.stem not in _HELPERS)


def _config(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    argument = _OF_FILE.get(path.stem, _ARGUMENTS.get(path.parent.name))
    return module.get_config(argument) if argument else module.get_config()


def _check(path, config):
    kind = path.parent.name
    if kind in ("sweep", "compare"):
        fields.check_config(config, fields.SWEEP, ("run", "grids", "labels"))
        fields.check_run(config.run)
    elif kind == "diffusion":
        if "method" in config:
            fields.check_config(config, fields.STYLE, fields.OPEN)
        else:
            fields.check_config(config, fields.DIFFUSION)
    elif kind in ("pretrain", "subspace", "pod", "plan", "latency", "prompting", "vision"):
        of_kind = {
            "pretrain": (fields.PRETRAIN, ()), "subspace": (fields.SUBSPACE, ("adapters",)),
            "pod": (fields.PLAN, fields.OPEN), "plan": (fields.PLAN, fields.OPEN),
            "latency": (LATENCY, LATENCY_OPEN), "prompting": (PROMPTING, ()),
            "vision": (VISION, ()),
        }  # fmt: skip
        fields.check_config(config, *of_kind[kind])
    else:
        fields.check_run(config)


@pytest.mark.parametrize("path", _files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_is_in_its_ranges_and_stays_as_it_is(path):
    config = _config(path)
    before = repr(config.to_dict())
    _check(path, config)
    assert repr(config.to_dict()) == before


def test_the_page_is_that_of_the_code():
    assert (ROOT / "docs/settings.md").read_text() == settings.page()


NAN, INF = math.nan, math.inf
_RUN = {
    "learning_rate": [NAN, INF, -1e-4, "fast"], "weight_decay": [NAN, -0.1], "max_grad_norm": [NAN, -1.0],
    "warmup_ratio": [-0.1, 1.5, NAN], "warmup_steps": [-1], "adam.b1": [1.0, NAN], "adam.b2": [-0.1, 1.0],
    "adam.eps": [0.0, -1e-8, NAN], "adam.epsilon": ["early"], "epochs": [-1, 10**20], "batch_size": [0, -8],
    "accumulate": [0, -1], "gradient_batches": [0, -1],
    "log_every": [0], "checkpoint_every": [0, -1], "prng": ["mersenne"],
    "base_dtype": [""], "seeds": [(), (0, 0), (-1,), (10**20,), (0.5,), 0, ("a",)],
    "data.max_length": [-1, 0, 2, 10**6], "data.max_examples": [-1], "data.max_eval_examples": [-2],
    "data.balanced": [1, "yes"], "data.order_seed": [-1, 10**20], "data.row_length": [-1, 10**6],
    "data.source": [""],
    "model.name": [""], "model.remat": ["some"], "model.unroll": [0], "mesh.data": [-2, 10**6],
    "model.hidden_dropout_prob": [1.0, -0.1, NAN], "task": ["rt", ""], "verify": [1], "eval_only": ["yes"],
    "adapter_task": ["", 3], "model.base_format": ["int3", "", 4],
}  # fmt: skip
_NLG = {
    "decode.beams": [0, 10**6], "decode.length_penalty": [NAN, INF, 1e9], "decode.max_tokens": [0, 10**7],
    "decode.no_repeat_ngram": [-1], "decode.batch_size": [0, 10**6], "label_smoothing": [1.0, -0.1, NAN],
    "dataset": ["e3e"], "data.decode_split": ["dev"], "data.max_prompts": [-1], "model.embd_pdrop": [1.0],
    "model.attention": ["flash", ""], "loftq": [1, "yes"], "data.train_split": ["valid", ""],
}  # fmt: skip
_CLASSIFY = {
    "labels": ["class", ""], "headline": ["f1", "mse"], "data.train": ["", ("a", "a"), ("",)],
    "data.held_out": ["x.csv", (1,)], "data.held_out_share": [0.0, 1.0, NAN], "data.split_seed": [-1],
    "data.text": [""], "data.pair": [1], "data.label": [""], "data.classes": [("a", "a"), "a"],
    "data.max_length": [0], "learning_rate": [NAN],
}  # fmt: skip
_TUNE = {
    "metric": ["bleu"], "data.train": [""], "data.held_out": [-0.1, NAN, 1e10], "data.split_seed": [-1],
    "data.format": ["alpaca"], "data.template": [""], "data.completion": [""], "data.long": ["keep"],
    "data.loss": ["prompts"], "data.max_prompts": [-1], "samples.count": [-1, 10**4],
    "samples.max_tokens": [0],
    "decode.method": ["argmax"], "decode.temperature": [-0.1, NAN], "decode.top_k": [-1], "decode.seed": [-1],
    "decode.top_p": [0.0, 1.1], "decode.beams": [0], "label_smoothing": [1.0], "loftq": ["yes"],
}  # fmt: skip
_KINDS = {
    "glue": ("minilm.py", _RUN, glue.task), "nlg": ("small.py", _NLG, nlg.DataToTextTask),
    "classify": ("minilm.py", _CLASSIFY, classify.task), "tune": ("small.py", _TUNE, TuneTask),
}  # fmt: skip


def _set(config, name, value):
    *parents, last = name.split(".")
    at = config
    for parent in parents:
        at = at[parent]
    with at.ignore_type():
        at[last] = value


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kind, (_, table, _) in _KINDS.items()
     for name, values in table.items() for value in values],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_a_value_outside_is_refused_before_anything_is_read_or_written(tmp_path, kind, name, value):
    """The model and the data of the config do not even exist."""
    file, _, task = _KINDS[kind]
    config = _config(ROOT / "configs" / kind / file)
    config.model.name = "no/such/model"
    _set(config, name, value)
    with pytest.raises(InputError, match=f"config.{name} must be "):
        run_all(task, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if kind == "glue":  # evaluation comes through the same door
        with pytest.raises(InputError, match=f"config.{name} must be "):
            glue.evaluate(config, None)


def test_missing_and_unknown_fields_are_named(tmp_path):
    config = _config(ROOT / "configs/glue/minilm.py")
    config.learning_rat = 1.0
    with pytest.raises(InputError, match="config has an unknown field 'learning_rat'"):
        run_all(glue.task, config, tmp_path / "run")
    config = _config(ROOT / "configs/glue/minilm.py")
    del config.data.max_length
    with pytest.raises(InputError, match="config has no field 'data.max_length': tokens"):
        run_all(glue.task, config, tmp_path / "run")


def test_grids_are_checked_before_the_sweep_has_a_folder():
    config = _config(ROOT / "configs/sweep/rank_glue.py")
    config.grids = ConfigDict({"bad": {"learning_rate": (1e-3, NAN)}})
    with pytest.raises(InputError, match="config.learning_rate must be a finite number"):
        points(config)


def test_other_commands_are_checked_too(tmp_path):
    config = _config(ROOT / "configs/pretrain/small.py")
    config.model.n_head = 0
    with pytest.raises(InputError, match="config.model.n_head must be an integer from 1 to 1,024"):
        pretrain.pretrain(config, tmp_path / "run")
    config = _config(ROOT / "configs/subspace/minilm_sst2.py")
    config.zoom = 0
    with pytest.raises(InputError, match="config.zoom must be"):
        analyse(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_field_of_a_run_has_a_case_above():
    """So that a new field gets one; flags and texts that may be empty accept nearly everything."""
    tried = {*_RUN, *_NLG, *_CLASSIFY, *_TUNE}
    left = {*fields.GLUE, *fields.DATA_TO_TEXT, *fields.CLASSIFY, *fields.TUNE} - tried
    assert left == {
        "adam.no_decay", "init_adapter", "adapter", "mesh.run", "mesh.fsdp", "mesh.model",
        "model.attention_probs_dropout_prob", "model.attn_pdrop", "model.resid_pdrop",
        "model.attention_dropout", "model.classifier_dropout", "data.validation",
        "data.test", "data.messages", "data.separator", "data.system", "data.chat_template",
    }  # fmt: skip
    assert set(flat(_config(ROOT / "configs/glue/minilm.py").to_dict())) >= set(_RUN) - {
        "adam.epsilon"
    }


# What an argument is tried with besides those of its range; other arguments that the method needs.
_ON_LAYERS = ("lora", "adalora", "loha", "lokr", "vera", "ia3")
_NEEDED = {**{name: {"targets": "q"} for name in _ON_LAYERS}, "adapter_d": {"size": 4, "layers": 1},
           "prefix_embed": {"prefix": 1}, "prefix_layer": {"prefix": 1}, "top_layers": {},
           "bitfit": {}}  # fmt: skip
_TRIED = [
    -1,
    0,
    1,
    0.5,
    1.5,
    1e9,
    2**16,
    2**31,
    10**400,
    NAN,
    INF,
    -INF,
    True,
    None,
    "",
    "cap",
    (),
    "none",
]


@pytest.mark.wrong_types
@pytest.mark.parametrize("argument", METHOD)
def test_methods_refuse_what_the_page_says(argument):
    method, name = argument.split(".")
    needed = {**_NEEDED.get(method, {"size": 4}), **({"infix": 1} if name == "prefix" else {})}
    allowed = METHOD[argument].allowed
    if name in ("init", "std") and method == "lora":
        needed["init"] = "kaiming"
    needed |= (
        {"svd_iterations": {"init": "pissa"}, "seed": {"gradient": "lora_fa"}}.get(name, {})
        if method == "lora"
        else {}
    )
    if name in ("rank", "target_rank") and method == "adalora":  # one bounds the other
        needed |= {"rank": LARGEST, "target_rank": 1}
    for value in _TRIED:
        made = {**needed, name: value}
        if allowed.accepts(value):
            methods.create(method, head="head/.*", **made)
        else:
            with pytest.raises(InputError):
                methods.create(method, head="head/.*", **made)


def test_the_page_has_every_number_and_choice_of_the_methods():
    """Patterns, names and lists are left: they are checked against the model."""
    left = {
        "targets",
        "head",
        "parts",
        "fused",
        "fused_sizes",
        "axes",
        "feed_forward",
        "exclude",
        "cut",
        "pattern",
        "rows",
        "tokens",
        "activation",
    }
    for name, constructor in CONSTRUCTORS.items():
        for argument in set(inspect.signature(constructor).parameters) - left:
            chosen = {
                *((n, "layers") for n in _ON_LAYERS),
                *((n, "std") for n in CONSTRUCTORS if n != "lora"),
            }
            assert (name, argument) in chosen or f"{name}.{argument}" in METHOD
