"""Verdicts about claims, from comparisons whose scores are parabolas with known optima."""

import json
import math
from pathlib import Path

import commands
import numpy as np
import pytest
from scipy import stats

from experiments.claims.__main__ import compared
from experiments.claims.claims import STATEMENTS, LeftOut, judged
from experiments.claims.measured import Measured
from experiments.claims.page import FILES, markdown, write
from experiments.claims.rules import MARGIN, Claim, larger, no_worse, within, worse
from experiments.compare import record
from experiments.compare.runs import Run
from experiments.compare.statistics import rows
from lora_jax import files
from lora_jax.errors import InputError

LOGS = np.arange(-5.0, 0.1, 0.5)  # of the learning rates of all methods
BUDGET = {"examples": 4000, "epochs": 1, "batch_size": 16}
SEEDS = 3
# By method: logarithms of the best rates and losses there, by seed. Scores are at the rate of the grid that
# is best on average; all tops lie within 0.1 of -2 (LoRA) or -3 (full).
FULL_TOPS = (-3.02, -2.97, -3.0)
TOPS = {
    "full": FULL_TOPS, "rank_1": (-2.0, -2.01, -1.98), "lora": (-2.03, -1.97, -2.0),
    "rank_128": (-1.95, -2.02, -1.99), "all_10": (-2.0,) * SEEDS, "attention_18": (-2.0,) * SEEDS,
    "mlp_16": (-2.0,) * SEEDS,
}  # fmt: skip
LOSSES = {
    "full": (0.30, 0.31, 0.29), "rank_1": (0.40, 0.43, 0.41), "lora": (0.33, 0.335, 0.32),
    "rank_128": (0.301, 0.312, 0.289), "all_10": (0.31, 0.32, 0.30), "attention_18": (0.36, 0.38, 0.35),
    "mlp_16": (0.312, 0.321, 0.302),
}  # fmt: skip
TRAINED = {"all_10": 1000, "attention_18": 1019, "mlp_16": 985}
CURVE = 0.1  # by how much the loss rises at ten times the best rate


def losses(name, tops, least):
    """The losses of a method by rate: a parabola over the logarithm for every seed."""
    return {
        10.0**x: [low + CURVE * (x - top) ** 2 for top, low in zip(tops[name], least[name], strict=True)]
        for x in LOGS
    }  # fmt: skip


def write_comparison(folder, *, tops=TOPS, least=LOSSES, smaller=True, trained=TRAINED, **fields):
    """comparison.json as experiments.compare writes it; scores are 1 - loss where more is better."""
    runs = {
        name: [
            Run(
                rate=rate, seed=seed, score=value if smaller else 1 - value, diverged=False,
                step_seconds=1.0, trained=trained.get(name, 10), folder=Path("."),
            )
            for rate, own in losses(name, tops, least).items()
            for seed, value in enumerate(own)
        ]
        for name in tops
    }  # fmt: skip
    comparison = record.Comparison(
        **{
            "experiment": "tune", "task": "texts", "model": "x/small", "budget": BUDGET,
            "headline": "loss" if smaller else "accuracy", "smaller_is_better": smaller,
            "rows": tuple(rows(runs, smaller_is_better=smaller)), **fields,
        }
    )  # fmt: skip
    values = record.to_json(comparison, dict.fromkeys(tops))
    files.write_json(folder / record.NAME, values)
    return comparison


def claims_of(found, number):
    return [own for own in judged(found) if own.number == number]


def ends(claim):
    interval = claim.measured.interval
    return [interval.value - interval.half, interval.value + interval.half]


def paired(one, other):
    """The interval of scipy's paired t-test."""
    found = stats.ttest_rel(one, other).confidence_interval(0.95)
    return [found.low, found.high]


def lossy(name):
    """Losses at the rate that a method of LoRA is given: the one of the grid at its tops' mean."""
    place = -3.0 if name == "full" else -2.0
    pairs = zip(TOPS[name], LOSSES[name], strict=True)
    return np.array([low + CURVE * (place - top) ** 2 for top, low in pairs])


@pytest.fixture
def main(tmp_path):
    write_comparison(tmp_path / "main")
    return tmp_path / "main"


@pytest.mark.parametrize("smaller", [True, False])
def test_intervals_are_scipy_s_and_verdicts_follow(tmp_path, smaller):
    write_comparison(tmp_path / "main", smaller=smaller)
    found = compared(str(tmp_path / "main"))
    first = claims_of(found, 1)
    assert [own.quantity.split()[3] for own in first] == ["1", "8", "128"]
    for own, name in zip(first, ("rank_1", "lora", "rank_128"), strict=True):
        np.testing.assert_allclose(ends(own), paired(TOPS[name], FULL_TOPS), 1e-9)
        assert own.verdict == "confirmed" and not own.why_open
    (second,) = claims_of(found, 2)
    np.testing.assert_allclose(ends(second), paired(TOPS["rank_128"], TOPS["rank_1"]), rtol=1e-8)
    expected = {
        3: ("rank_128", "full", "confirmed"), 4: ("rank_1", "rank_128", "confirmed"),
        5: ("attention_18", "all_10", "confirmed"), 6: ("mlp_16", "all_10", "confirmed"),
    }  # fmt: skip
    for number, (one, other, verdict) in expected.items():
        (own,) = claims_of(found, number)
        np.testing.assert_allclose(ends(own), paired(lossy(one), lossy(other)), atol=1e-12)
        assert own.verdict == verdict and own.rule.text
    assert [type(claims_of(found, number)[0]) for number in (7, 8)] == [LeftOut, LeftOut]


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (within(5, 20, ""), math.log10(5.01), math.log10(19.9), "confirmed"),
        (within(5, 20, ""), math.log10(4.9), math.log10(19.9), "open"),
        (within(5, 20, ""), math.log10(1), math.log10(100), "open"),
        (within(5, 20, ""), math.log10(1), math.log10(4.9), "refuted"),
        (within(5, 20, ""), math.log10(20.1), math.log10(30), "refuted"),
        (no_worse(""), -1.0, 0.9 * MARGIN, "confirmed"),
        (no_worse(""), 0.9 * MARGIN, 1.1 * MARGIN, "open"),
        (no_worse(""), 1.1 * MARGIN, 1.0, "refuted"),
        (worse(""), 0.1 * MARGIN, 0.9 * MARGIN, "confirmed"),
        (worse(""), -0.1 * MARGIN, 1.1 * MARGIN, "open"),
        (worse(""), -1.0, 0.9 * MARGIN, "refuted"),
        (larger(), 0.01, 1.0, "confirmed"),
        (larger(), -0.01, 1.0, "open"),
        (larger(), -1.0, -0.01, "refuted"),
    ],
)
def test_every_verdict_of_every_rule(rule, low, high, verdict):
    """Three seeds whose interval has the given ends."""
    middle = (low + high) / 2
    apart = (high - low) / 2 * math.sqrt(3) / stats.t.ppf(0.975, 2)  # the standard deviation
    values = {0: middle - apart, 1: middle, 2: middle + apart}
    claim = Claim(number=1, quantity="", ratio=False, measured=Measured(values), rule=rule)
    np.testing.assert_allclose(ends(claim), [low, high], atol=1e-12)
    assert claim.verdict == verdict
    doubted = Claim(number=1, quantity="", ratio=False, measured=Measured(values, "x"), rule=rule)
    assert doubted.verdict == "open" and doubted.why_open == "x"
    alone = Claim(number=1, quantity="", ratio=False, measured=Measured({0: middle}), rule=rule)
    assert alone.verdict == "open" and alone.why_open == "one seed has no interval"


def test_a_large_batch_and_short_runs_are_compared_with_the_main_one(main, tmp_path):
    large = {**LOSSES, "rank_128": (0.35, 0.37, 0.34), "lora": (0.325, 0.33, 0.31)}
    write_comparison(tmp_path / "large", least=large, budget={**BUDGET, "batch_size": 256})
    short_tops = {**TOPS, "lora": (-1.6, -1.62, -1.57), "rank_128": (-2.4, -2.37, -2.43)}
    write_comparison(tmp_path / "short", tops=short_tops, budget={**BUDGET, "examples": 160})
    found = compared(str(main), str(tmp_path / "large"), str(tmp_path / "short"))

    rank_8, highest = claims_of(found, 7)
    for own, name in ((rank_8, "lora"), (highest, "rank_128")):
        change = np.subtract(large[name], LOSSES[name])  # full fine-tuning's scores are the same
        np.testing.assert_allclose(ends(own), paired(change, np.zeros(3)), atol=1e-12)
    assert "rank 128" in highest.quantity
    assert (rank_8.verdict, highest.verdict) == ("refuted", "confirmed")

    rank_8, highest = claims_of(found, 8)
    for own, name in ((rank_8, "lora"), (highest, "rank_128")):
        np.testing.assert_allclose(ends(own), paired(short_tops[name], TOPS[name]), atol=1e-9)
    assert (rank_8.verdict, highest.verdict) == ("confirmed", "refuted")


def test_at_an_end_of_the_grid_a_claim_is_open_and_says_why(tmp_path):
    tops = {**TOPS, "rank_128": (-2.0, 0.4, -2.1), "rank_1": (0.5, 0.6, 0.5)}
    write_comparison(tmp_path / "main", tops=tops)
    found = compared(str(tmp_path / "main"))
    rank_1, rank_8, rank_128 = claims_of(found, 1)
    assert rank_8.verdict == "confirmed"
    assert rank_128.verdict == rank_1.verdict == "open" and not rank_128.measured.by_seed
    assert rank_128.why_open == "the best rate of rank_128 is at an end of its grid for seed 1"
    assert rank_1.why_open.endswith("of its grid for seeds 0, 1, 2")
    (second,) = claims_of(found, 2)
    assert second.why_open == f"{rank_128.why_open}; {rank_1.why_open}"
    # A score is at the rate with the best mean: in doubt for rank 1 alone, but there.
    (low,) = claims_of(found, 4)
    assert low.verdict == "open" and len(low.measured.by_seed) == SEEDS
    assert low.why_open == "the best rate of rank_1 is the highest of its grid"
    assert not claims_of(found, 3)[0].why_open
    text = markdown(found, judged(found))
    assert f"| - | {rank_128.rule.text} | open: {rank_128.why_open} |" in text


def test_missing_ranks_are_left_out(tmp_path):
    tops = {name: TOPS[name] for name in ("full", "rank_1")}
    write_comparison(tmp_path / "main", tops=tops)
    found = compared(str(tmp_path / "main"))
    assert [own.number for own in judged(found) if isinstance(own, Claim)] == [1]
    why = {own.number: own.why for own in judged(found) if isinstance(own, LeftOut)}
    assert why == {
        2: "there is one rank", 3: "it needs a rank of 32 or more, and the highest is 1",
        4: "it needs rank 1 and one of 32 or more", 5: "there is no method `all_N`",
        6: "there is no method `all_N`", 7: "it needs --large_batch", 8: "it needs --short",
    }  # fmt: skip
    for number, reason in why.items():
        line = f"- {number}. {STATEMENTS[number]}: {reason}."
        assert line in markdown(found, judged(found)).splitlines()


def test_unequal_numbers_of_trained_values_are_left_out_with_the_numbers(tmp_path):
    write_comparison(tmp_path / "main", trained={**TRAINED, "attention_18": 1021})
    found = compared(str(tmp_path / "main"))
    (left_out,) = claims_of(found, 5)
    assert left_out.why == (
        "no two methods are within 2% of trained values: `all_10` 1,000; `attention_18` 1,021"
    )
    assert isinstance(claims_of(found, 6)[0], Claim)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"headline": "perplexity"}, "headline: found 'perplexity', expected 'loss', as in --main"),
        ({"experiment": "glue"}, "experiment: found 'glue'"),
        ({"task": "others"}, "task: found 'others'"),
        ({"budget": BUDGET}, "budget.batch_size: found 16, expected more than 16"),
        (
            {"budget": {**BUDGET, "batch_size": 64, "examples": 100}},
            "budget.examples: found 100, expected 4000, as in --main",
        ),
        (
            {"budget": {**BUDGET, "batch_size": 64, "epochs": 9}},
            "budget.epochs: found 9, expected 1, as in --main",
        ),
    ],
)
def test_comparisons_that_do_not_belong_together(main, tmp_path, fields, says):
    write_comparison(tmp_path / "large", **{"budget": {**BUDGET, "batch_size": 64}, **fields})
    with pytest.raises(InputError, match=says) as error:
        compared(str(main), str(tmp_path / "large"))
    assert str(tmp_path / "large" / record.NAME) in str(error.value)
    with pytest.raises(InputError, match=r"short/comparison.json, budget\.examples: found 4000"):
        write_comparison(tmp_path / "short")
        compared(str(main), short=str(tmp_path / "short"))


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"examples": 40_000}, r"examples: found 40000, expected fewer in all than 4000 "),
        ({"examples": 400, "epochs": 10}, r"examples: found 400, expected fewer in all than 4000 "),
        ({"examples": 80, "batch_size": 64}, r"batch_size: found 64, expected 16, as in --main"),
    ],
)
def test_short_runs_are_shorter_with_equal_batches(main, tmp_path, budget, says):
    write_comparison(tmp_path / "short", budget={**BUDGET, **budget})
    with pytest.raises(InputError, match=f"short/comparison.json, budget.{says}"):
        compared(str(main), "", str(tmp_path / "short"))


def test_a_seed_without_any_score_leaves_rates_open(tmp_path):
    """Three seeds ended at some rates, a fourth nowhere: it is not that there were three."""
    path = tmp_path / "main" / record.NAME
    write_comparison(tmp_path / "main")
    values = json.loads(path.read_text())
    for method in values["methods"]:
        for rate in method["rates"]:
            rate["failed"] += 1
            rate["diverged"] += 1
    files.write_json(path, values)
    found = compared(str(tmp_path / "main"))
    for own in (*claims_of(found, 1), *claims_of(found, 2)):
        assert own.verdict == "open" and "1 seed of" in own.why_open
        assert "has no score at any rate" in own.why_open


def test_files_of_earlier_versions_do_not_say_their_budget(main, tmp_path):
    values = json.loads((main / record.NAME).read_text())
    old = {name: values[name] for name in values if name not in ("task", "model", "budget")}
    (main / record.NAME).write_text(json.dumps(old))
    write_comparison(tmp_path / "large", budget={**BUDGET, "batch_size": 64})
    found = compared(str(main), str(tmp_path / "large"))
    text = markdown(found, judged(found))
    assert "--main: its comparison.json does not say the budget" in text
    assert "--large_batch: 4,000 training examples, 1 epoch, updates of 64." in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: None, "comparison.json is missing; it is written when all runs"),
        (lambda v: v["methods"][0].pop("trained"), r"methods\[0\].trained: found nothing"),
        (lambda v: v["methods"][1].update(learning_rate=7), r"methods\[1\].learning_rate: found 7, "),
        (lambda v: v["methods"][1]["rates"][2]["scores"].update(x=1), r"rates\[2\].scores.x: found a name"),
        (lambda v: v.update(methods=v["methods"][:1]), "methods: found .*, expected `full` and LoRA"),
    ],
)  # fmt: skip
def test_unfinished_and_damaged_files_name_the_command(main, change, says):
    path = main / record.NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    if "missing" in says:
        path.unlink()
    with pytest.raises(InputError, match=says) as error:
        compared(str(main))
    # Another comparison is not to be trained over.
    place = "ANOTHER_FOLDER" if "methods: found" in says else main
    command = (
        f"python -m experiments.compare --config=configs/compare/regret.py:e2e --workdir={place}"
    )
    assert command in str(error.value) and str(path) in str(error.value)


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    tops = {**TOPS, "rank_128": (-2.0, 0.4, -2.1)}
    written = write_comparison(tmp_path / "main", tops=tops)
    assert record.read(tmp_path / "main", "") == written
    write_comparison(
        tmp_path / "one", tops={"full": (-3.0,), "x": (-2.0,)}, least={"full": (1,), "x": (2,)}
    )
    (row, _) = record.read(tmp_path / "one", "").rows
    assert math.isnan(row.score.half) and math.isnan(row.times) and row.difference is None


def test_what_is_written(main, tmp_path):
    found = compared(str(main))
    write(tmp_path / "out", found, judged(found))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert (tmp_path / "out" / "claims.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "claims.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| 4."))
    low, high = paired(lossy("rank_1"), lossy("rank_128"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1].endswith(f": {np.mean(lossy('rank_1') - lossy('rank_128')):+.3f}")
    assert cells[2] == f"{low:+.3f} to {high:+.3f}" and cells[4] == "confirmed"
    (line,) = (line for line in text.splitlines() if "rank 8 over full" in line)
    ratio = [
        10**end
        for end in (np.mean(TOPS["lora"]) - np.mean(FULL_TOPS), *paired(TOPS["lora"], FULL_TOPS))
    ]
    assert "| best rate, rank 8 over full: {:.2g}x | {:.2g}x to {:.2g}x |".format(*ratio) in line
    values = json.loads((tmp_path / "out" / "claims.json").read_text())
    (own,) = (c for c in values["claims"] if c["claim"] == 4)
    np.testing.assert_allclose(own["mean"] + own["half"], high)
    np.testing.assert_allclose(list(own["by_seed"].values()), lossy("rank_1") - lossy("rank_128"))
    assert [left["claim"] for left in values["left_out"]] == [7, 8]


def test_the_command(main, tmp_path):
    output = tmp_path / "out"
    done = commands.run("experiments.claims", f"--main={main}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written to {output}: {', '.join(FILES)}\n"
    found = compared(str(main))
    assert (output / "claims.md").read_text() == markdown(found, judged(found))
    with pytest.raises(InputError, match="--main=DIR --output=DIR"):
        compared("")
