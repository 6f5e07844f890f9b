"""Sweep configs: their points and groups, against the configs of single runs; configs of records."""

import json

import jax
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from configs import record
from configs.compare import e2e as compare_e2e
from configs.compare import glue as compare_glue
from configs.compare import small as compare_small
from configs.glue import minilm_weights, roberta_base_lora, roberta_large_lora
from configs.glue.common import TASKS
from configs.nlg import gpt2_medium_lora, small, smollm2
from configs.sweep import (
    learning_rate,
    rank_glue,
    smollm2_rates,
    table_5,
    table_6,
    table_16,
    table_18,
)
from configs.training import training_fields
from experiments.paper import scores
from experiments.runs import folder as workdirs
from experiments.sweep.points import compatible, points
from lora_jax import methods
from lora_jax.models.gpt2 import GPT2, SIZES, GPT2Config
from lora_jax.run_folder import flat

GLUE = (rank_glue, table_5, table_6, learning_rate)
MODELS = ("minilm", "roberta_base", "roberta_large")
# What a sweep sets beside its grid: see `configs.sweep.common` and the rows of one length.
SET = ("seeds", "mesh.run", "mesh.data", "data.row_length")


def single(task, model):
    """The config of the same run without a sweep."""
    if model == "minilm":
        return minilm_weights.get_config(f"{task},qv,8")
    module = roberta_base_lora if model == "roberta_base" else roberta_large_lora
    return module.get_config(task)


def fields(config):
    """The values of a config, by path."""
    return flat(workdirs.plain(config))


def differences(one, other):
    """Fields in which a point differs from another config, apart from what sweeps set."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} - set(SET)


def swept(every):
    """The distinct values that points have, by field."""
    values = {key: [config_values[key] for config_values in every] for key in every[0]}
    return {
        key: sorted(set(map(str, varied)))
        for key, varied in values.items()
        if varied != varied[:1] * len(varied)
    }


# points, groups and two names
@pytest.mark.parametrize(
    ("module", "argument", "count", "apart", "names"),
    [
        (rank_glue, "mrpc", 8, 1, ["rank=1,seed=0", "rank=8,seed=2"]),
        (rank_glue, "mrpc,roberta_base", 25, 1, ["rank=1,seed=0", "rank=64,seed=4"]),
        (rank_glue, "rte,roberta_large", 25, 1, ["rank=2,seed=1", "rank=64,seed=4"]),
        (table_6, "sst2", 45, 3, ["rank=1,targets=q,seed=0", "rank=64,targets=qkvo,seed=2"]),
        (table_6, "mnli,roberta_base", 75, 3, ["rank=8,targets=qv,seed=4"]),
        (table_5, "stsb", 21, 7, ["rank=8,targets=o,seed=2", "rank=2,targets=qkvo,seed=0"]),
        (learning_rate, "mrpc", 30, 1, ["learning_rate=0.0002,rank=1,seed=0"]),
        (learning_rate, "cola,roberta_base", 30, 1, ["learning_rate=0.002,rank=64,seed=1"]),
        (table_18, "smollm2", 8, 1, ["rank=1,seed=0", "rank=128,seed=0"]),
        (smollm2_rates, "lora", 4, 1, ["learning_rate=0.0003,seed=0", "learning_rate=0.01,seed=0"]),
        (smollm2_rates, "full", 4, 1, ["learning_rate=1e-05,seed=0", "learning_rate=0.0003,seed=0"]),
        (table_16, "100", 20, 4, ["learning_rate=0.001,method=lora,seed=4"]),
        (table_18, "small", 9, 1, ["rank=1,seed=0", "rank=256,seed=0"]),
        (table_18, "gpt2_medium", 11, 1, ["rank=1,seed=0", "rank=1024,seed=0"]),
    ],
)  # fmt: skip
def test_points_and_groups(module, argument, count, apart, names):
    found = points(module.get_config(argument))
    assert len(found) == count == len({point.name for point in found})
    assert len(compatible(found)) == apart
    assert set(names) <= {point.name for point in found}
    assert all(len(point.config.seeds) == 1 and point.config.mesh.run == -1 for point in found)


def test_the_benchmark_is_eight_runs_of_one_program():
    names = [point.name for point in points(rank_glue.get_config())]
    ranks = [f"rank={rank},seed=0" for rank in (1, 2, 4, 8, 16, 64)]
    assert names == [*ranks, "rank=8,seed=1", "rank=8,seed=2"]
    run = points(rank_glue.get_config())[3].config
    assert (run.learning_rate, run.epochs, run.data.max_examples) == (1e-3, 2, 0)
    assert run.model.hidden_dropout_prob == run.model.attention_probs_dropout_prob == 0
    assert run.method.alpha == 16 and run.method.get("dropout", 0) == 0


@pytest.mark.parametrize("task", [*TASKS, "wnli"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("module", GLUE)
def test_points_are_single_runs_apart_from_the_grid(module, model, task):
    config, expected = module.get_config(f"{task},{model}"), single(task, model)
    allowed = {"method.rank"}
    allowed |= {"method.targets"} if module in (table_5, table_6) else set()
    allowed |= {"learning_rate"} if module is learning_rate else set()
    allowed |= {"data.max_examples"} if (task, model) == ("mrpc", "minilm") else set()
    alone, found, of_single = 0, points(config), fields(expected)
    every = [fields(point.config) for point in found]
    for point, values in zip(found, every, strict=True):
        assert differences(values, of_single) <= allowed
        assert point.method.to_json()
        assert point.config.method.alpha == expected.method.alpha
        assert point.config.init_adapter == "" and point.config.seeds[0] in range(5)
        alone += not differences(values, of_single) - {"data.max_examples"}
    # The single run is among them, unless the budget or the learning rates leave it out.
    assert alone or module in (table_5, learning_rate)
    assert set(swept(every)) <= {"seeds", "method.rank", "method.targets", "learning_rate"}


@pytest.mark.parametrize("module", GLUE)
def test_minilm_is_the_default_model(module):
    assert module.get_config("stsb") == module.get_config("stsb,minilm")


def test_rows_hold_the_longest_example_and_what_the_method_puts_before_it():
    """Of E2E's training examples at most 128 tokens, see table_18; what a method adds comes on top."""
    arguments = {
        table_16: [f"{size}{model}" for size in (100, 1_000, 10_000) for model in ("", ",roberta_base")],
        table_18: table_18.MODELS,
        smollm2_rates: smollm2.METHODS.keys() - {"none"},  # it does not train
        compare_glue: ["sst2"], compare_e2e: ["e2e"], compare_small: ["e2e"],
    }  # fmt: skip
    for module, each in arguments.items():
        for argument in each:
            for point in points(module.get_config(argument)):
                data, own = point.config.data, sum(point.method.special_tokens)
                assert not data.row_length or data.row_length >= 128 + own, (argument, point.name)


def test_rows_hold_the_longest_example_that_the_set_up_allows():
    for task in TASKS:
        for model in MODELS:
            data = rank_glue.get_config(f"{task},{model}").run.data
            assert data.row_length in (0, 128, 192) and data.row_length <= data.max_length
    lengths = {task: rank_glue.get_config(f"{task},roberta_base").run.data for task in TASKS}
    assert {task: data.row_length for task, data in lengths.items()} == {
        "mnli": 0, "sst2": 128, "mrpc": 192, "cola": 128, "qnli": 0, "qqp": 0, "rte": 0, "stsb": 192,
    }  # fmt: skip
    assert {data.max_length for data in lengths.values()} == {512}


def test_sets_of_weights_of_table_5_have_its_ranks():
    found = {
        point.name.rpartition(",")[0]: point.config.method.targets
        for point in points(table_5.get_config("sst2"))
    }
    ranks = {"q": 8, "k": 8, "v": 8, "o": 8, "qk": 4, "qv": 4, "qkvo": 2}
    for weights, rank in ranks.items():
        alone = minilm_weights.get_config(f"sst2,{weights},{rank}")
        assert found[f"rank={rank},targets={weights}"] == alone.method.targets
    assert len(found) == len(ranks)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("small", small.get_config("e2e,lora")), ("gpt2_medium", gpt2_medium_lora.get_config("e2e"))],
)
def test_points_of_table_18_are_single_runs(argument, expected):
    found = points(table_18.get_config(argument))
    for point in found:
        assert differences(fields(point.config), fields(expected)) <= {"method.rank"}
        assert point.method.to_json()
    ranks = [point.config.method.rank for point in found]
    assert ranks == [2**i for i in range(len(ranks))] and found[0].config.method.alpha == 32
    assert table_18.get_config() == table_18.get_config("small")


@pytest.mark.parametrize(
    ("argument", "sizes"),
    [("gpt2_medium", SIZES["gpt2-medium"]), ("small", GPT2Config(256, 4, 4))],
)
def test_the_largest_rank_fits_the_matrices(argument, sizes):
    config = points(table_18.get_config(argument))[-1].config
    method = methods.create(**config.method.to_dict())

    def adapted():
        return method.insert(GPT2(sizes, nnx.Rngs(0)), jax.random.key(0))

    counted = method.summary(nnx.eval_shape(adapted)).counts()["lora"]
    assert counted == sizes.n_layer * 2 * 2 * sizes.n_embd * config.method.rank
    config.method.rank *= 2
    method = methods.create(**config.method.to_dict())
    with pytest.raises(ValueError, match=f"its smaller side is {sizes.n_embd}"):
        nnx.eval_shape(adapted)


@pytest.mark.parametrize(
    ("module", "argument", "message"),
    [
        *((module, "mprc", "unknown task 'mprc' in 'mprc'; known are .*mrpc") for module in GLUE),
        *((module, "rte,bert", "unknown model 'bert'.*minilm.*roberta_base") for module in GLUE),
        (table_18, "large", "unknown model 'large'; known are .*small.*gpt2_medium"),
    ],
)
def test_unknown_arguments_are_named(module, argument, message):
    with pytest.raises(ValueError, match=message):
        module.get_config(argument)


def test_heads_have_the_numbers_of_the_paper():
    def cells(module):
        lines = module.__doc__.splitlines()
        return [[cell.strip() for cell in x.strip("|").split("|")] for x in lines if x[:1] == "|"]

    assert [tuple(row[2:]) for row in cells(table_6)[2:]] == list(scores.TABLE_6.values())
    names = {"q": "W_q", "qv": "W_q, W_v", "qkvo": "W_q, W_k, W_v, W_o"}
    assert [row[1] for row in cells(table_6)[2:]] == [names[key] for _, key in scores.TABLE_6]
    assert [tuple(row[1:]) for row in cells(rank_glue)[2:]] == [
        scores.TABLE_6[task, "qv"] for task in ("WikiSQL", "MNLI")
    ]
    assert [tuple(row[1:]) for row in cells(table_5)[3:]] == list(scores.TABLE_5.values())
    found = {int(row[0]): tuple(row[1:]) for row in cells(table_18)[2:]}
    assert found == scores.TABLE_18


# the config of a record


def parsed(*arguments):
    """What an experiment's `--config` gives for a command line."""
    values = flags.FlagValues()
    argv = ["program", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


RECORD = record.__file__


@pytest.mark.parametrize(
    "config",
    [
        roberta_base_lora.get_config("rte"),
        gpt2_medium_lora.get_config("webnlg"),
        points(rank_glue.get_config("mrpc"))[-1].config,
        points(table_6.get_config("sst2"))[-1].config,
        points(table_18.get_config("small"))[0].config,
    ],
    ids=["glue", "nlg", "rank", "targets", "nlg rank"],
)
def test_a_record_gives_the_config_of_its_run(tmp_path, config):
    folder = tmp_path / "points" / "rank=8,a:b,seed=0"
    workdirs.claim(folder, config)
    for given in ([f"--config={RECORD}:{folder}"], ["--config", f"{RECORD}:{folder}"]):
        found = parsed(*given)
        assert (
            differences(fields(found), fields(config)) == set()
        )  # `SET` apart, which are compared here:
        assert found.seeds == config.seeds and found.data.row_length == config.data.row_length
        assert found.mesh.to_dict() == training_fields()["mesh"]
        assert found.data.get_type("row_length") is int
    assert workdirs.finished(folder, found) is None  # the same run, but for the mesh
    assert methods.create(**found.method.to_dict()) == methods.create(**config.method.to_dict())


def test_fields_of_a_record_can_be_set_on_the_command_line(tmp_path):
    folder = tmp_path / "rank=8,seed=0"
    workdirs.claim(folder, gpt2_medium_lora.get_config("e2e"))
    config = parsed(
        f"--config={RECORD}:{folder}", "--config.seeds=(3,)", "--config.method.rank=2",
        "--config.data.row_length=96", "--config.learning_rate=1e-3", "--config.mesh.data=2",
        "--config.method.parts=('q',)",
    )  # fmt: skip
    assert config.seeds == (3,) and config.method.parts == ("q",)
    assert (config.method.rank, config.data.row_length, config.mesh.data) == (2, 96, 2)
    assert config.learning_rate == 1e-3
    with pytest.raises(AttributeError, match="ranks"):
        parsed(f"--config={RECORD}:{folder}", "--config.method.ranks=2")


def test_a_record_of_an_older_version_gets_the_newer_fields(tmp_path):
    values = workdirs.plain(roberta_base_lora.get_config("rte"))
    del values["data"]["row_length"], values["mesh"], values["prng"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert workdirs.plain(record.get_config(str(tmp_path))) == workdirs.plain(
        roberta_base_lora.get_config("rte")
    )


def test_folders_without_a_run_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"give the folder of a run: --config=.*record.py:FOLDER"):
        record.get_config()
    file = tmp_path / "config.json"
    with pytest.raises(ValueError, match=f"there is no {file}; give the folder of a run"):
        record.get_config(str(tmp_path))
    sweep = tmp_path / "sweep.json"
    sweep.write_text("{}")
    with pytest.raises(ValueError, match=f"{sweep}.*one of its points, {tmp_path}/points/NAME"):
        record.get_config(str(tmp_path))
    workdirs.claim(tmp_path / "points" / "rank=1,seed=0", roberta_base_lora.get_config("rte"))
    with pytest.raises(ValueError, match=f"one of its points, {tmp_path}/points/rank=1,seed=0"):
        record.get_config(str(tmp_path))
    for text in ('{"hidden_size": 384}', '{"task": "rte", "method": {"name": "lora"}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file} is not the config of a run"):
            record.get_config(str(tmp_path))
    whole = roberta_base_lora.get_config("rte").to_dict()
    for part in ("data", "method"):
        file.write_text(json.dumps({**whole, part: 3}, default=str))
        with pytest.raises(ValueError, match=f"{file}, {part}: found 3, expected an object"):
            record.get_config(str(tmp_path))
    file.write_text("[]")
    with pytest.raises(ValueError, match=f"{file}: found \\[\\], expected a JSON object"):
        record.get_config(str(tmp_path))
    file.write_text("{")
    with pytest.raises(ValueError, match=f"{file}, line 1: found invalid JSON"):
        record.get_config(str(tmp_path))


@pytest.mark.parametrize(("size", "settings"), table_16.SETTINGS.items())
def test_table_17_is_in_the_sweeps_over_sizes(size, settings):
    """Table 17: batches, epochs, lengths of the prefixes, rank; five seeds of each method."""
    found = points(table_16.get_config(str(size)))
    assert len(found) == 4 * 5
    for point in found:
        run = point.config
        assert (run.batch_size, run.epochs) == settings[:2]
        assert run.data.balanced and run.data.max_examples == size
        method = dict(run.method)
        if method["name"] == "prefix_embed":
            assert (method["prefix"], method["infix"]) == (settings[2], 8)
        if method["name"] == "prefix_layer":
            assert (method["prefix"], method["infix"]) == (8, 8)
        if method["name"] == "lora":
            assert method["rank"] == 8 and method["targets"] == ".*/attention/(query|value)"


@pytest.mark.parametrize("model", ["smollm2", "small", "gpt2_xl", "llama"])
def test_table_17_is_in_the_sweeps_of_decoders(model):
    """On MNLI as text; 250,000 tokens of warm-up are 16 updates of 20 rows of 768 tokens, 3 of 100."""
    for size, (batch_size, epochs, prefix) in table_16.SETTINGS.items():
        found = points(table_16.get_config(f"{size},{model}"))
        assert len(found) == 4 * 5
        for point in found:
            run = point.config
            assert (run.dataset, run.batch_size, run.epochs) == ("mnli_text", batch_size, epochs)
            assert run.warmup_steps == (3 if size == 10_000 else 16) and run.warmup_ratio == 0
            assert run.data.balanced and run.data.max_examples == size
            method = dict(run.method)
            own = {"smollm2": smollm2.LEARNING_RATE, "small": small.LEARNING_RATE}
            rates = {"full": 5e-6, "prefix_embed": 4e-4 if size == 10_000 else 2e-4,
                     "prefix_layer": 5e-5, "lora": 2e-4}  # fmt: skip
            assert run.learning_rate == own.get(model, rates)[method["name"]]
            if method["name"] == "lora":
                assert method["rank"] == 8
            elif method["name"] != "full":
                lengths = (prefix, 8) if method["name"] == "prefix_embed" else (8, 8)
                assert (method["prefix"], method["infix"]) == lengths
    with pytest.raises(ValueError, match=r"unknown number of examples '7'.*'10000'"):
        table_16.get_config(f"7,{model}")
