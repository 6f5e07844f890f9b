"""Comparisons of methods: a tiny one from end to end, and its statistics on made-up runs."""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib.collections import PolyCollection
from scipy import stats

from configs.compare import common, e2e, glue, instructions, regret, small
from configs.glue import minilm
from configs.sweep.common import sweep_config
from experiments.compare import __main__ as compare
from experiments.compare import contenders, figures, optimum, page, peft
from experiments.compare import record as json_file
from experiments.compare.runs import Run
from experiments.compare.statistics import AtRate, Row, contains_zero, rows
from experiments.runs.intervals import Interval, over_seeds
from experiments.sweep import local as sweeps
from experiments.sweep.command import Trained
from experiments.sweep.experiment import experiment
from experiments.sweep.local import run_sweep
from experiments.sweep.points import compatible, points
from experiments.sweep.steps import Steps
from lora_jax import files, methods
from lora_jax.models.gpt2 import GPT2, GPT2Config
from tests.experiments.sweep_runs import record

METHODS = {
    "lora": {"name": "lora", "targets": ".*/(query|value)", "rank": 2, "alpha": 4.0},
    "rslora": {
        "name": "lora", "targets": ".*/(query|value)", "rank": 2, "alpha": 4.0, "scaling": "alpha/sqrt(r)",
    },
    "bitfit": {"name": "bitfit"},
}  # fmt: skip
SEEDS = (0, 1)
RATES = {"lora": (0.01, 1e30), "rslora": (0.01, 0.03), "bitfit": (1e29, 1e30)}  # some diverge
STEPS = 3  # 24 examples in batches of 8; the warm-up begins at a learning rate of zero


class Killed(BaseException):
    pass


def config_of(tiny_model, tiny_glue, rates=RATES, **fields):
    run = minilm.get_config("rte,lora")
    run.update_from_flattened_dict(
        {
            "model.name": str(tiny_model), "data.source": str(tiny_glue), "data.max_length": 48,
            "data.max_examples": 24, "data.max_eval_examples": 12, "data.row_length": 48, "epochs": 1,
            "batch_size": 8, "log_every": 1, **fields,
        }
    )  # fmt: skip
    run.method = dict(METHODS["lora"])
    grids = {
        name: {"method": (METHODS[name],), "learning_rate": own, "seeds": SEEDS}
        for name, own in rates.items()
    }
    config = sweep_config("glue", run, grids, METHODS)
    config.runs_per_program = 4
    return config


def compared(config, workdir):
    """What the command does, without its flags."""
    contenders.check(config)
    folder = run_sweep(config, workdir)
    members = folder.named(points(config))
    varied = experiment(config.experiment)
    compare.report(Trained(config=config, folder=folder, members=members, varied=varied))


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / "points").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_model, tiny_glue, tmp_path_factory):
    """A comparison that is killed between two programs and started again; the programs of each start."""
    folder, trained = tmp_path_factory.mktemp("compare") / "rte", [[], []]
    config = config_of(tiny_model, tiny_glue)
    original = sweeps.train_program
    for start in trained:

        def train(base, program, *arguments, start=start):
            if len(trained[0]) == 2 and start is trained[0]:
                raise Killed
            start.append(program.points)
            original(base, program, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweeps, "train_program", train)
            if start is trained[0]:
                with pytest.raises(Killed):
                    compared(config, folder)
                assert not (folder / "comparison.md").exists()
            else:
                compared(config, folder)
    return config, folder, trained


@pytest.mark.slow
def test_killed_and_started_again_repeats_nothing(finished, capsys, monkeypatch):
    config, folder, (before, after) = finished
    names = [name for program in (*before, *after) for name in program]
    assert len(before) == 2 and len(names) == len(set(names)) == 12
    files, page_before = stamps(folder), (folder / "comparison.md").read_text()

    def step(*_):
        raise AssertionError("a finished comparison trains nothing")

    monkeypatch.setattr(Steps, "train_step", step)
    compared(config, folder)
    assert stamps(folder) == files
    assert (folder / "comparison.md").read_text() == page_before
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"runs: {folder}/points   comparison: {folder}/comparison.md"


def test_the_numbers_are_those_of_the_run_records(finished):
    _, folder, _ = finished
    found = json.loads((folder / "comparison.json").read_text())
    assert found["headline"] == "accuracy" and found["reference"] == "lora"
    by_name = {row["method"]: row for row in found["methods"]}

    def scores(name, rate):
        runs = [
            record(folder / f"points/learning_rate={rate},method={name},seed={s}") for s in SEEDS
        ]
        return [
            run["seeds"][str(s)]["best"]["accuracy"] for s, run in zip(SEEDS, runs, strict=True)
        ]

    lora, rslora = by_name["lora"], by_name["rslora"]
    assert lora["learning_rate"] == 0.01 and lora["edge"] == "lowest" and lora["diverged"] == 2
    assert lora["score"]["mean"] == pytest.approx(np.mean(scores("lora", "0.01")))
    best = max((0.01, 0.03), key=lambda rate: np.mean(scores("rslora", f"{rate:g}")))
    assert rslora["learning_rate"] == best and rslora["diverged"] == 0
    differences = np.subtract(scores("rslora", f"{best:g}"), scores("lora", "0.01"))
    assert rslora["difference_to_lora"]["mean"] == pytest.approx(differences.mean())
    assert lora["difference_to_lora"] is None and lora["times_lora"] == 1
    # Two layers of width 32, q and v: A and B of rank 2.
    assert lora["trained"] == rslora["trained"] == 2 * 2 * 2 * (32 + 32)
    for row in (lora, rslora):
        where = (
            folder / f"points/learning_rate={row['learning_rate']:g},method={row['method']},seed=0"
        )
        files = [p for p in (where / "adapter").rglob("*") if p.is_file()]
        assert row["adapter_bytes"] == sum(p.stat().st_size for p in files) > 0


def test_the_file_that_is_read_and_written_again_is_the_same(finished):
    _, folder, _ = finished
    found, text = json_file.read(folder, ""), (folder / json_file.NAME).read_text()
    assert found.task == "rte"
    assert found.budget == {"examples": 24, "epochs": 1, "batch_size": 8}
    sizes = {row["method"]: row["adapter_bytes"] for row in json.loads(text)["methods"]}
    assert files.to_json(json_file.to_json(found, sizes)) + "\n" == text


def test_a_method_that_always_diverged_is_last_and_without_numbers(finished):
    _, folder, _ = finished
    found = json.loads((folder / "comparison.json").read_text())["methods"]
    assert found[-1]["method"] == "bitfit" and found[-1]["diverged"] == 4
    assert found[-1]["score"] is found[-1]["learning_rate"] is found[-1]["adapter_bytes"] is None
    text = (folder / "comparison.md").read_text()
    assert "all seeds ended with a score: bitfit." in text
    (line,) = (line for line in text.splitlines() if line.startswith("| bitfit"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:7] == ["-"] * 5 and cells[8:] == ["-", "4"]


def test_the_page(finished):
    _, folder, _ = finished
    text = (folder / "comparison.md").read_text()
    assert text.startswith("# Methods on rte with ") and "accuracy x 100, more is better" in text
    assert "0.01 (lowest tried)" in text and "on the evaluation data" in text
    plots = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(plots) == 2
    for plot in plots:
        assert (folder / plot).read_bytes().startswith(b"\x89PNG")


def test_files_in_the_form_of_peft(finished):
    _, folder, _ = finished
    assert sorted(p.name for p in (folder / "peft").iterdir()) == [
        f"{m}.json" for m in sorted(METHODS)
    ]
    found = json.loads((folder / "peft/lora.json").read_text())
    run = record(folder / "points/learning_rate=0.01,method=lora,seed=0")
    info = found["train_info"]
    memory = (
        "accelerator_memory_reserved_avg",
        "accelerator_memory_max",
        "accelerator_memory_reserved_99th",
    )
    assert [info[name] for name in memory] == [None] * 3
    assert info["num_trainable_params"] == run["parameters"]["trainable"]
    assert info["num_total_params"] == run["parameters"]["total"] and info["status"] == "success"
    (metrics,) = info["metrics"]
    assert metrics["step"] == STEPS and metrics["train samples"] == 24
    assert metrics["valid accuracy"] == run["seeds"]["0"]["history"][0]["accuracy"]
    log = folder / "points/learning_rate=0.01,method=lora,seed=0/seed_0/metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert metrics["train loss"] == pytest.approx(
        np.mean([x["loss"] for x in lines if "loss" in x])
    )
    assert found["run_info"]["peft_config"]["peft_type"] == "LORA"
    assert {"model_info", "dataset_info", "package_info", "system_info"} == set(found["meta_info"])
    failed = json.loads((folder / "peft/bitfit.json").read_text())
    assert failed["train_info"]["status"] == "failed" and failed["train_info"]["metrics"] == []
    assert "diverged at step" in failed["run_info"]["error_msg"]


def test_the_epochs_of_a_run_are_entries_in_peft_s_form(tmp_path):
    """Two epochs of three steps, every second step logged; the second epoch has one logged step."""
    folder = tmp_path / "seed_3"
    folder.mkdir()
    lines = [
        {"step": 2, "loss": 1.0, "learning_rate": 0.1}, {"step": 3, "validation/loss": 0.9},
        {"step": 4, "loss": None, "learning_rate": 0.1}, {"step": 6, "loss": 0.5, "learning_rate": 0.1},
        {"step": 6, "validation/loss": 0.4},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "history": [{"loss": 0.9}, {"loss": 0.4}], "step": 6, "examples": 12, "tokens": 60,
        "test": {"bleu": 0.1},
    }  # fmt: skip
    own = peft.Record(folder / "result.json", values, remedy="")
    found = peft._metrics(own, made(0.1, 3, 0.4, folder=tmp_path))
    assert found == [
        {"step": 3, "valid loss": 0.9, "train loss": 1.0, "train samples": 6, "train total tokens": 30},
        {"step": 6, "valid loss": 0.4, "train loss": 0.5, "train samples": 12, "train total tokens": 60,
         "test bleu": 0.1},
    ]  # fmt: skip


def made(rate, seed, score, *, diverged=False, trained=100, seconds=1.0, folder=Path(".")):
    return Run(
        rate=rate, seed=seed, score=score, diverged=diverged, step_seconds=seconds, trained=trained,
        folder=folder,
    )  # fmt: skip


def grid(scores, **fields):
    """Runs of a method from its scores by rate; None is a run that diverged."""
    return [
        made(rate, seed, score, diverged=score is None, **fields)
        for rate, own in scores.items()
        for seed, score in enumerate(own)
    ]


LORA = {0.1: (0.80, 0.84, 0.85), 0.3: (0.90, 0.93, 0.92), 1.0: (0.7, 0.9, 0.8)}
OTHER = {0.1: (0.99, None, 0.99), 0.3: (0.91, 0.90, 0.96), 1.0: (0.92, 0.95, 0.97)}


def test_intervals_are_scipy_s():
    values = [0.90, 0.93, 0.92]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    found = over_seeds(values)
    np.testing.assert_allclose(
        [found.value - found.half, found.value + found.half], [low, high], 1e-12
    )
    assert over_seeds([0.5]).value == 0.5 and math.isnan(over_seeds([0.5]).half)


@pytest.mark.parametrize("smaller", [False, True])
def test_rates_and_differences_paired_by_seed(smaller):
    """With the sign turned and less as the better score all is the same, turned."""
    sign = -1 if smaller else 1
    turned = [
        {rate: [None if s is None else sign * s for s in own] for rate, own in scores.items()}
        for scores in (LORA, OTHER)
    ]
    runs = {"lora": grid(turned[0], seconds=2.0), "other": grid(turned[1], seconds=3.0)[::-1]}
    other, lora = rows(runs, smaller_is_better=smaller)
    assert (other.name, lora.name) == ("other", "lora")
    assert (lora.best.rate, lora.edge, lora.diverged, lora.difference) == (0.3, "", 0, None)
    # 0.1 has the best scores, but a run diverged there; the highest rate is an end of the grid.
    assert (other.best.rate, other.edge, other.diverged) == (1.0, "highest", 1)
    assert (lora.times, other.times, other.step_seconds) == (1.0, 1.5, 3.0)
    paired = stats.ttest_rel(turned[1][1.0], turned[0][0.3]).confidence_interval(0.95)
    ends = [
        other.difference.value - other.difference.half,
        other.difference.value + other.difference.half,
    ]
    np.testing.assert_allclose(ends, [paired.low, paired.high], 1e-10)
    assert contains_zero(other.difference) == (paired.low <= 0 <= paired.high)


def test_what_contains_zero():
    assert contains_zero(Interval(0.1, 0.2)) and contains_zero(Interval(-0.2, 0.2))
    assert contains_zero(Interval(0.3, 0.2)) is False
    assert contains_zero(Interval(0.3, math.nan)) is None


def test_edges_and_methods_without_a_score():
    nan = made(0.1, 1, None)  # a score that is no number: no divergence, but no mean either
    runs = {
        "gone": grid({0.1: (None, None), 0.3: (None, 0.9)}),
        "low": grid({0.1: (0.9, 0.9), 0.3: (0.9, 0.9)}),
        "nan": [made(0.1, 0, 0.99), nan, *grid({0.3: (0.5, 0.5)})],
        "one": grid({0.1: (0.7,)}),
        "lora": grid({0.1: (0.6, 0.6), 0.3: (0.8, 0.8), 1.0: (None, None)}),
    }
    found = {row.name: row for row in rows(runs, smaller_is_better=False)}
    assert list(found)[-1] == "gone" and found["gone"].diverged == 3
    assert (
        found["gone"].best is None and found["gone"].difference is None and not found["gone"].edge
    )
    assert (found["low"].best.rate, found["low"].edge) == (0.1, "lowest")  # the lower one of equals
    assert (found["nan"].best.rate, found["nan"].diverged) == (0.3, 0)
    assert found["one"].edge == "only" and math.isnan(found["one"].score.half)
    # Runs diverged above: the best rate is between others.
    assert (found["lora"].best.rate, found["lora"].edge) == (0.3, "")
    assert found["low"].difference == Interval(pytest.approx(0.1), pytest.approx(0))


def test_without_the_reference_nothing_is_compared():
    (row,) = rows({"other": grid(OTHER)}, smaller_is_better=False)
    assert row.difference is None and math.isnan(row.times)


def test_units_are_the_paper_s():
    assert page.Unit("accuracy", False).text(Interval(0.9123, 0.008)) == "91.2 ± 0.8"
    assert page.Unit("matthews", False).text(Interval(0.5, math.nan), signed=True) == "+50.0"
    assert page.Unit("loss", True).text(Interval(1.23456, 0.01)) == "1.235 ± 0.010"
    assert page.Unit("loss", True).label == "loss, less is better"


def test_every_method_looks_different():
    names = list(common.MIDDLE)
    looks = figures.styles(names)
    assert len({str(look.marker.get_marker()) for look in looks.values()}) == len(names)
    alike = rows(
        {n: grid(LORA, trained=100 + (n == "full")) for n in names}, smaller_is_better=False
    )
    more = rows({"more": grid(LORA, trained=200)}, smaller_is_better=False)
    group, alone = figures._alike([*more, *alike])
    assert len(group) == len(names) and alone == more
    places = figures._side_by_side(group)
    assert len(set(places.values())) == len(names)
    assert np.exp(np.mean(np.log(list(places.values())))) == pytest.approx(100, 1e-3)
    gone = rows({"lora": grid({0.1: (None, None)})}, smaller_is_better=False)
    assert figures.by_size(gone, "", 1.0) is None and figures.by_rate(gone, "", 1.0) is None


def test_where_training_fails_no_band_fills_the_panel():
    """At 3.0 the mean is far outside of what is drawn: the line leaves, the band ends before."""
    scores = {**LORA, 3.0: (-40.0, 0.7, 0.6)}
    found = rows({"lora": grid(scores), "other": grid(LORA)}, smaller_is_better=False)
    axes = figures.by_rate(found, "", 1.0).axes[0]
    assert axes.get_ylim()[0] > 0
    bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
    assert len(bands) == 2
    for band in bands:
        (path,) = band.get_paths()
        assert set(path.vertices[:, 0].round(6)) == {0.1, 0.3, 1.0}
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    assert max(max(line.get_xdata()) for line in lines) == 3.0


@pytest.mark.parametrize(
    ("module", "argument", "count"),
    [
        (glue, "sst2", 17), (e2e, "e2e", 17), (instructions, "instructions", 17),
        (glue, "mrpc,lora+dora", 2), (e2e, "lora+vera", 2), (instructions, "instructions,pissa", 1),
    ],
)  # fmt: skip
def test_configs_have_distinct_points_at_equal_budgets(module, argument, count):
    config = module.get_config(argument)
    assert len(config.grids) == count
    for name, own in config.grids.items():
        rates = list(own.learning_rate)
        assert len(rates) == 5 and rates[2] == common.MIDDLE[name] and list(own.seeds) == [0, 1, 2]
        factors = np.divide(rates[1:], rates[:-1])
        assert np.all((factors > 2.9) & (factors < 3.4))
        own.learning_rate, own.seeds = own.learning_rate[:2], own.seeds[:1]  # 255 points take time
    contenders.check(config)
    found = points(config)
    assert len(found) == len({point.name for point in found}) == 2 * count
    assert all("~" not in point.name for point in found)
    named = {re.search("method=([a-z_0-9]+),", point.name)[1] for point in found}
    assert named == set(config.grids)
    assert len(compatible(found)) == count - (count == 17)  # LoRA and rsLoRA are one program


def test_all_runs_of_the_default_comparison():
    found = points(glue.get_config())
    assert len(found) == len({point.name for point in found}) == 17 * 5 * 3


@pytest.mark.parametrize(
    ("module", "argument", "updates"),
    [(glue, "sst2", 63), (glue, "rte", 189), (glue, "wnli", 60), (e2e, "", 50), (instructions, "", 50)],
)  # fmt: skip
def test_adalora_s_schedule_fits_the_updates(module, argument, updates):
    config = module.get_config(argument)
    (method,) = config.grids.adalora.method
    assert (method["warm_up"], method["final"]) == (updates // 10, 3 * updates // 10)
    assert method["target_rank"] == 8 and method["alpha"] / method["rank"] == 2


@pytest.mark.parametrize(
    ("module", "argument", "says"),
    [
        (glue, "sst3", "unknown task 'sst3'"), (glue, "sst2,lora+lorra", "unknown method 'lorra'"),
        (glue, "sst2,lora+lora", "twice"), (e2e, "webnlg", "'webnlg' .* is no method"),
        (instructions, "gsm8k,lora", "'gsm8k'"),
    ],
)  # fmt: skip
def test_bad_arguments(module, argument, says):
    with pytest.raises(ValueError, match=says):
        module.get_config(argument)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("rslora.seeds", (0, 2), r"config.grids.rslora.seeds are \[0, 2\], those of .* \[0, 1\]"),
        ("rslora.epochs", (2,), "config.grids.rslora sets epochs otherwise than config.grids.bitfit"),
        ("lora.batch_size", (8, 4), "config.grids.lora varies batch_size; .* has one method"),
        ("lora.method", (METHODS["lora"], METHODS["bitfit"]), r"config.grids.lora varies method\."),
    ],
)  # fmt: skip
def test_what_is_no_comparison_is_refused(tiny_model, tiny_glue, path, value, says):
    config = config_of(tiny_model, tiny_glue)
    name, field = path.split(".")
    config.grids[name] = {**config.grids[name].to_dict(), field: value}
    with pytest.raises(ValueError, match=says):
        contenders.check(config)


def test_runs_that_another_command_trains_leave_the_comparison_to_later(
    finished, capsys, monkeypatch
):
    config, folder, _ = finished
    before = (folder / "comparison.md").stat().st_mtime_ns
    monkeypatch.setattr(compare, "unfinished", lambda *_: ["learning_rate=0.01,method=lora,seed=0"])
    compared(config, folder)
    assert "1 runs have no result yet, such as learning_rate=0.01" in capsys.readouterr().out
    assert (folder / "comparison.md").stat().st_mtime_ns == before


# ---- where the best learning rate lies ------------------------------------------------------------------


def _at_rates(tops, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), sign=-1.0):
    """A method whose scores are parabolas over the logarithm of the rate, with a top for every seed."""
    of_rate = tuple(
        AtRate(
            rate=rate, diverged=0, failed=0,
            scores={s: 0.9 + sign * 0.1 * (math.log10(rate) - top) ** 2 for s, top in enumerate(tops)},
        )
        for rate in rates
    )  # fmt: skip
    return Row(name="x", trained=1, rates=of_rate, best=of_rate[2], step_seconds=1.0)


def test_a_rate_at_which_training_fails_does_not_flatten_the_plot():
    row = _at_rates((-3.1, -3.0))
    failed = AtRate(rate=0.1, scores={0: 30.0, 1: 40.0}, diverged=0, failed=0)
    figure = figures.by_rate([dataclasses.replace(row, rates=(*row.rates, failed))], "loss", 1.0)
    low, high = figure.axes[0].get_ylim()
    near = [at.interval.value for at in row.rates[1:4]]
    assert low < min(near) and max(near) < high < max(near) + (max(near) - min(near))


def test_the_optimum_of_a_parabola_is_its_top():
    tops = (-3.2, -2.9, -3.05)
    row = _at_rates(tops)
    found = optimum.of_row(row, smaller_is_better=False)
    expected = stats.t.interval(0.95, 2, np.mean(tops), stats.sem(tops))
    np.testing.assert_allclose([found.value - found.half, found.value + found.half], expected)
    assert optimum.as_rate(found) == "0.00089 (0.00038 to 0.0021)"
    losses = _at_rates(tops, sign=1.0)
    np.testing.assert_allclose(optimum.of_row(losses, smaller_is_better=True).value, np.mean(tops))
    other = _at_rates((-4.2 + 0.3, -3.9 + 0.2, -4.05 + 0.1), rates=(1e-5, 1e-4, 1e-3))
    difference = np.array(tops) - [-3.9, -3.7, -3.95]
    found = optimum.ratio(row, other, smaller_is_better=False)
    np.testing.assert_allclose(found.value, difference.mean())
    np.testing.assert_allclose(found.half, stats.t.ppf(0.975, 2) * stats.sem(difference))


def test_there_is_no_optimum_at_an_end_of_the_grid_or_beside_a_run_without_a_score():
    assert optimum.of_row(_at_rates((-3.0, -5.0)), smaller_is_better=False) is None
    assert optimum.as_rate(None) == "-"
    row = _at_rates((-3.0, -3.1))
    del row.rates[3].scores[1]
    assert optimum.of_seed(row.rates, 0, smaller_is_better=False) == pytest.approx(-3.0)
    assert optimum.of_seed(row.rates, 1, smaller_is_better=False) is None
    assert optimum.ratio(row, _at_rates((-3.0, -3.1)), smaller_is_better=False) is None
    flat = dataclasses.replace(
        row, rates=tuple(dataclasses.replace(at, scores={0: 0.5}) for at in row.rates)
    )
    assert (
        optimum.of_seed(flat.rates, 0, smaller_is_better=False) is None
    )  # the first of equals is an end


@pytest.mark.parametrize(
    ("fails", "known"), [(1.65, True), (1.9, True), (2.2, False), (9.9, False)]
)
def test_a_neighbour_at_which_training_fails_says_nothing_of_the_top(fails, known):
    """At 1e-2 the loss is worse by more than ten times what the worst of the other side's is."""
    scores = {3e-4: 1.65, 1e-3: 1.604, 3e-3: 1.6, 1e-2: fails}
    at = tuple(
        AtRate(rate=rate, scores=dict.fromkeys(range(3), score), diverged=0, failed=0)
        for rate, score in scores.items()
    )
    row = Row(name="x", trained=1, rates=at, best=at[2], step_seconds=1.0)
    found = optimum.of_row(row, smaller_is_better=True)
    assert (found is not None) == known
    if known:
        top = np.polyfit([-3, np.log10(3e-3), -2], [1.604, 1.6, fails], 2)
        assert found.value == pytest.approx(-top[1] / (2 * top[0]))
        assert not optimum.missing(row, smaller_is_better=True)
    else:
        why = "training of x fails right beside its best rate for seeds 0, 1, 2"
        assert optimum.missing(row, smaller_is_better=True) == why


def test_a_seed_without_a_score_at_any_rate_leaves_the_method_without_an_optimum():
    rates = _at_rates((-3.0, -3.1)).rates
    row = Row(
        name="x", trained=1, rates=tuple(dataclasses.replace(at, failed=1, diverged=1) for at in rates),
        best=None, step_seconds=1.0,
    )  # fmt: skip
    assert optimum.of_row(row, smaller_is_better=False) is None
    why = "1 seed of x has no score at any rate"
    assert optimum.missing(row, smaller_is_better=False) == why
    assert optimum.ratio(row, row, smaller_is_better=False) is None


def test_the_budget_is_what_was_trained_on():
    config = {"batch_size": 8, "accumulate": 2, "epochs": 3, "data": {"max_examples": 500}}
    budget = json_file.budget_of(config, 60)
    assert budget == {"examples": 60, "epochs": 3, "batch_size": 16}
    assert json_file.budget_text(budget) == "60 training examples, 3 epochs, updates of 16"


# Values of a rank in a layer, by layer: inputs and outputs.
WIDTHS = {
    "e2e": {"attention/qkv": 4, "attention/output": 2, "up": 5, "down": 5},  # as times d
    "sst2": {
        "attention/query": 768, "attention/key": 768, "attention/value": 768, "attention/output": 768,
        "up": 1920, "down": 1920,
    },
}  # fmt: skip


@pytest.mark.parametrize("task", WIDTHS)
def test_the_comparison_about_regret_has_equal_counts_and_lower_rates_for_full_fine_tuning(task):
    config = regret.get_config(task)
    contenders.check(config)
    found = points(config)
    assert len(found) == len({point.name for point in found}) == 10 * 7 * 3
    chosen = {name: grid.method[0] for name, grid in config.grids.items()}
    counts = {
        name: own["rank"]
        * sum(w for path, w in WIDTHS[task].items() if re.fullmatch(own["targets"], f"x/{path}"))
        for name, own in chosen.items()
        if own["name"] == "lora"
    }
    alike = [counts[name] for name in counts if name.split("_")[0] in ("all", "attention", "mlp")]
    assert len(alike) == 3 and len(set(alike)) == 1 and alike[0] > counts["lora"]
    assert counts["rank_16"] == 2 * counts["lora"] == 16 * counts["rank_1"]
    rates = {name: grid.learning_rate for name, grid in config.grids.items()}
    np.testing.assert_allclose(np.divide(rates["lora"], rates["full"]), 10)
    with pytest.raises(ValueError, match="unknown method 'rank_3'"):
        regret.get_config(f"{task},rank_3")


def test_the_small_comparison_scales_keys_and_values_of_the_joined_projection():
    config = small.get_config("ia3+lora")
    contenders.check(config)
    model = GPT2(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2), nnx.Rngs(0))
    method = methods.create(**config.grids.ia3.method[0])
    adapted = method.insert(model, jax.random.key(0))
    # Two thirds of the projection's 48 outputs and the 64 inputs of the second matrix, in two layers.
    assert method.summary(adapted).counts()["trainable"] == 2 * (32 + 64)
    with pytest.raises(ValueError, match="'webnlg'"):
        small.get_config("webnlg")
