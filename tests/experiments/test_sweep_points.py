"""The points of a sweep: products and unions of grids, names, errors, groups, shares of programs."""

import dataclasses
import itertools
import json
import math

import pytest
from ml_collections import ConfigDict

from configs.glue import minilm
from configs.sweep.common import sweep_config
from experiments.sweep.experiment import EXPERIMENTS
from experiments.sweep.points import Point, compatible, points
from experiments.sweep.programs import Program, programs
from lora_jax.reading import Record
from lora_jax.run_folder import flat as flattened

QUERY, KEY = ".*/attention/query", ".*/attention/key"


def sweep(grids, labels=None, **run):
    """The sweep of these grids over the small encoder's RTE config."""
    base = minilm.get_config("rte,lora")
    base.update_from_flattened_dict({name.replace("__", "."): v for name, v in run.items()})
    return sweep_config("glue", base, grids, labels)


def found(grids, labels=None, **run):
    return points(sweep(grids, labels, **run))


def names(grids, labels=None, **run):
    return [point.name for point in found(grids, labels, **run)]


def values(point, *paths):
    flat = flattened(point.config.to_dict())
    return tuple(flat[path] for path in paths)


def test_a_grid_is_the_product_of_its_values():
    """The last field, in the order of the alphabet that a ConfigDict has, changes fastest."""
    grid = {"method": {"rank": (1, 8), "alpha": (4.0, 16.0)}, "seeds": (0, 3)}
    members = found({"all": grid}, epochs=7)
    seen = [values(point, "method.alpha", "method.rank", "seeds", "epochs") for point in members]
    product = itertools.product((4.0, 16.0), (1, 8), (0, 3))
    assert seen == [(alpha, rank, (seed,), 7) for alpha, rank, seed in product]
    assert [point.seed for point in members] == [0, 3] * 4
    assert (
        members[0].name == "alpha=4,rank=1,seed=0" and len({point.name for point in members}) == 8
    )


def test_points_of_several_grids_come_once():
    ranks = {"method": {"rank": (1, 8)}, "seeds": (0,)}
    seeds = {"method": {"rank": (8,)}, "seeds": (0, 1)}
    assert names({"ranks": ranks, "seeds": seeds}) == [
        "rank=1,seed=0", "rank=8,seed=0", "rank=8,seed=1",
    ]  # fmt: skip


def test_a_point_s_config_is_its_own():
    config = sweep({"all": {"method": {"rank": (1, 8)}}})
    one, other = points(config)
    one.config.method.rank, one.config.data.max_length = 5, 3
    assert other.config.method.rank == 8 and config.run.method.rank == 8
    assert other.config.data.max_length == config.run.data.max_length == 128


@pytest.mark.parametrize(
    ("grid", "labels", "expected"),
    [
        ({"learning_rate": (1e-4, 0.03, 2.0)}, None,
         ["learning_rate=0.0001", "learning_rate=0.03", "learning_rate=2"]),
        ({"method": {"init": ("gaussian",), "std": (0.02,)}}, None, ["init=gaussian,std=0.02"]),
        ({"method": {"targets": (QUERY,)}}, None, ["targets=.~~attention~query"]),
        ({"method": {"targets": (QUERY, KEY)}}, {"q": QUERY}, ["targets=q", "targets=.~~attention~key"]),
        ({"method": {"scaling": ("alpha/sqrt(r)",)}}, None, ["scaling=alpha~sqrt~r~"]),
        ({"method": {"scaling": ("alpha/sqrt(r)",)}}, {"rs": "alpha/sqrt(r)"}, ["scaling=rs"]),
        ({"data": {"order_seed": (None, 3)}}, None, ["order_seed=None", "order_seed=3"]),
        ({"model": {"name": ("a/b",)}, "method": {"name": ("lora",)}}, None,
         ["method.name=lora,model.name=a~b"]),
        ({"seeds": (0, 11)}, None, ["seed=0", "seed=11"]),
    ],
)  # fmt: skip
def test_a_name_is_short_and_can_be_a_folder(grid, labels, expected):
    assert names({"one": grid}, labels) == expected


def test_whole_methods_have_the_label_of_their_arguments_or_their_name():
    lora = {"name": "lora", "targets": QUERY, "rank": 2}
    pissa, rates = {**lora, "init": "pissa"}, (0.1,)
    grid = {"method": (lora, pissa), "learning_rate": rates, "seeds": (0,)}
    one, other = names({"all": grid}, {"pissa": dict(reversed(pissa.items())), "plain": lora})
    assert one == "learning_rate=0.1,method=plain,seed=0"
    assert other == "learning_rate=0.1,method=pissa,seed=0"
    # Without a label of its own a method has its name's, or its name, as ever.
    assert names({"all": {"method": (lora, pissa)}}, {"pissa": pissa}) == [
        "method=lora", "method=pissa",
    ]  # fmt: skip
    assert names({"all": {"method": (lora,)}}, {"ours": "lora"}) == ["method=ours"]
    assert names({"all": {"method": (lora, {"name": "bitfit"})}}) == [
        "method=lora", "method=bitfit",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two points have the name 'method=lora'"):
        names({"all": {"method": (lora, pissa)}})


def test_a_name_has_every_field_that_any_grid_varies():
    grids = {"a": {"method": {"rank": (1,)}}, "b": {"learning_rate": (0.5,)}}
    assert names(grids) == ["rank=1,learning_rate=0.001", "rank=8,learning_rate=0.5"]
    # An argument that the method's config does not name, where the other grid leaves it out.
    grids = {"a": {"method": {"rank": (1,)}}, "b": {"method": {"dropout": (0.1,)}}}
    assert names(grids) == ["rank=1,dropout=None", "rank=8,dropout=0.1"]
    assert found(grids)[1].config.method.dropout == 0.1


@pytest.mark.parametrize(
    "grid",
    [
        {"learning_rate": (0.1234567, 0.1234568)},  # alike in six digits
        {
            "method": {"targets": (".*/(query)", ".*/[query]")}
        },  # alike without what folders cannot be
    ],
)
def test_no_point_is_lost_because_its_name_is_another_s(grid):
    """Either both are points, under two names, or the sweep is refused."""
    try:
        members = found({"one": grid})
    except ValueError as error:
        assert "name" in str(error)
    else:
        assert len({point.name for point in members}) == len(members) == 2


@pytest.mark.parametrize(
    ("grids", "run", "says"),
    [
        ({}, {}, r"config.grids is empty"),
        ({"a": {}}, {}, r"config.grids.a\b.*(empty|at least one)"),
        ({"a": {"method": {}}}, {}, r"config.grids.a.method must be a tuple of at least one value"),
        ({"a": {"method": {"rank": ()}}}, {}, r"config.grids.a.method.rank must be a tuple.*got \(\)"),
        ({"a": {"method": {"rank": 8}}}, {}, r"config.grids.a.method.rank must be a tuple.*got 8"),
        ({"a": {"epochs": "12"}}, {}, r"config.grids.a.epochs must be a tuple.*got '12'"),
        ({"a": {"method": {"rank": ("8",)}}}, {}, r"config.grids.a.method.rank: '8' does not fit"),
        ({"a": {"epochs": (1.5,)}}, {}, r"config.grids.a.epochs: 1.5 does not fit"),
        ({"a": {"learning_rate": ("high",)}}, {}, r"config.grids.a.learning_rate: 'high' does not fit"),
        ({"a": {"seeds": ("one",)}}, {}, r"config.grids.a.seeds: 'one' does not fit"),
        ({"a": {"seeds": ((0, 1),)}}, {}, r"config.grids.a.seeds: \(0, 1\) does not fit"),
        ({"a": {"lerning_rate": (1.0,)}}, {}, r"config.grids.a: .* no field 'lerning_rate'"),
        ({"a": {"optimizer": {"b1": (0.9,)}}}, {}, r"config.grids.a: .* no field 'optimizer.b1'"),
        ({"a": {"epochs": {"more": (1,)}}}, {}, r"config.grids.a: .* no field 'epochs.more'"),
        ({"a": {"method": {"plus": {"size": (1,)}}}}, {}, r"no field 'method.plus.size'"),
        ({"a": {"method": {"rang": (8,)}}}, {}, r"rang"),
        ({"a": {"method": {"rank": (0,)}}}, {}, r"rank must be a positive integer.*got 0"),
        ({"a": {"method": {"name": ("lorra",)}}}, {}, r"unknown method 'lorra'"),
        ({"a": {"method": {"rank": (1,)}}}, {"seeds": (0, 1)}, None),
    ],
)  # fmt: skip
def test_bad_grids_are_named(grids, run, says):
    config = sweep(grids)
    config.run.update(run)
    says = says or r"config.run.seeds has 2 seeds; .*\(config.grids.a.seeds\)"
    with pytest.raises((ValueError, TypeError), match=says):
        points(config)


def test_seeds_of_the_run_do_not_matter_where_a_grid_names_them():
    config = sweep({"a": {"seeds": (4, 5)}})
    config.run.seeds = (0, 1)
    assert [point.seed for point in points(config)] == [4, 5]


VECTORISED = {
    "method": {
        "rank": (1, 8), "alpha": (4.0, 16.0), "scaling": ("alpha/r", "alpha/sqrt(r)"),
        "init": ("kaiming", "gaussian"), "std": (0.02, 0.2), "dropout": (0.0, 0.1),
    },
    "learning_rate": (1e-3, 1e-2), "seeds": (0, 1), "data": {"order_seed": (None, 0)},
}  # fmt: skip


def fields(grid):
    for name, value in flattened(grid).items():
        *parents, last = name.split(".")
        yield name, {parents[0]: {last: value}} if parents else {last: value}


@pytest.mark.parametrize(("name", "grid"), fields(VECTORISED))
def test_numbers_of_runs_are_one_group(name, grid):
    members = found({"a": grid})
    assert [len(group) for group in compatible(members)] == [2], name


def test_all_of_them_together_are_one_group():
    (group,) = compatible(found({"a": VECTORISED}))
    assert len(group) == 2**9 and len({point.name for point in group}) == 2**9


GROUPS = {
    "method": {"targets": (QUERY, KEY), "bias": ("none", "all")}, "batch_size": (8, 16),
    "epochs": (1, 2), "weight_decay": (0.0, 0.1), "task": ("rte", "mrpc"), "accumulate": (1, 2),
    "data": {"max_length": (32, 64), "row_length": (64, 0)},
    "model": {"hidden_dropout_prob": (0.0, 0.1)}, "adam": {"b2": (0.98, 0.999)},
    "init_adapter": ("", "runs/mnli"), "warmup_ratio": (0.0, 0.1),
}  # fmt: skip


@pytest.mark.parametrize(("name", "grid"), fields(GROUPS))
def test_everything_else_forms_groups(name, grid):
    members = found({"a": {**grid, "seeds": (0, 1)}})
    assert [len(group) for group in compatible(members)] == [2, 2], name
    for group in compatible(members):
        assert len({values(point, name) for point in group}) == 1


def test_other_methods_form_groups():
    config = sweep({"a": {"seeds": (0, 1)}})
    members = points(config)
    for method in ("full", "bitfit", "lora_all"):
        config.run.method = ConfigDict(minilm.METHODS[method])
        members += [dataclasses.replace(p, name=f"{method} {p.name}") for p in points(config)]
    assert [len(group) for group in compatible(members)] == [2, 2, 2, 2]


def test_rows_are_of_one_length_only_where_orders_differ():
    grids = {
        "own": {"method": {"rank": (1, 8)}, "seeds": (0, 1), "batch_size": (8,)},
        "one": {"method": {"rank": (1, 8)}, "seeds": (0,), "batch_size": (16,)},
        "fixed": {"data": {"order_seed": (5,)}, "seeds": (0, 1), "batch_size": (32,)},
        "given": {"data": {"row_length": (77,)}, "seeds": (0, 1), "batch_size": (64,)},
    }
    lengths = {}
    for point in found(grids):
        lengths.setdefault(point.config.batch_size, set()).add(point.config.data.row_length)
    assert lengths == {8: {0}, 16: {None}, 32: {None}, 64: {77}}
    seeds = found({"a": {"seeds": (2,), "data": {"order_seed": (None, 0)}}})
    assert [point.order for point in seeds] == [2, 0]


def shares(count, most, ways=1, first=0):
    config = sweep({"a": {"seeds": tuple(range(count))}})
    group = points(config)
    return group, programs(group, most=most, ways=ways, first=first)


@pytest.mark.parametrize(
    ("count", "most", "ways", "sizes", "runs"),
    [
        (6, 6, 1, [6], 6), (6, 100, 1, [6], 6), (7, 6, 1, [4, 3], 4), (7, 3, 1, [3, 3, 1], 3),
        (1, 1, 1, [1], 1), (3, 1, 1, [1, 1, 1], 1), (5, 8, 8, [5], 8), (9, 8, 8, [8, 1], 8),
        (9, 16, 4, [9], 12), (10, 7, 4, [4, 4, 2], 4), (17, 12, 4, [12, 5], 12), (4, 3, 2, [2, 2], 2),
    ],
)  # fmt: skip
def test_points_are_shared_out_over_few_programs_of_one_size(count, most, ways, sizes, runs):
    group, planned = shares(count, most, ways, first=7)
    assert [len(program.points) for program in planned] == sizes
    assert {program.runs for program in planned} == {runs}
    assert sum((program.points for program in planned), ()) == tuple(point.name for point in group)
    assert [program.name for program in planned] == [f"{7 + i:03d}" for i in range(len(sizes))]


@pytest.mark.parametrize("count", range(1, 40))
def test_no_program_is_empty(count):
    group = _group(count)
    for most, ways in itertools.product(range(1, 17), (1, 2, 4, 8)):
        if most >= ways:
            planned = programs(group, most=most, ways=ways, first=0)
            assert all(program.points for program in planned), (most, ways)
            assert len(planned) == math.ceil(count / (most // ways * ways)), (most, ways)


_METHOD = EXPERIMENTS["glue"].method(minilm.get_config("rte,lora"))


def _group(count):
    return [Point(str(i), ConfigDict(), _METHOD) for i in range(count)]


def test_a_program_survives_its_description():
    _, (program,) = shares(3, 4)
    values = {
        "name": "000", "points": list(program.points), "runs": 3,
        "method": program.method.to_json(),
    }  # fmt: skip
    assert json.loads(json.dumps(program.to_json())) == values
    assert Program.from_json(Record("plan.json", values)) == program


def test_fewer_runs_than_devices_that_need_one():
    with pytest.raises(
        ValueError, match=r"runs_per_program is 3, but mesh.run=4 devices.*raise it"
    ):
        shares(5, 3, 4)
