"""The live table of a sweep: which rows and lines are shown, status files, the summary."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from experiments.sweep.live_table import LiveTable, RunStatus, from_json, summary, to_json
from lora_jax.errors import FileError
from lora_jax.reading import Record

RUNS = [
    RunStatus("rank=1,seed=0", "waiting"),
    RunStatus(
        "rank=2,seed=0", "finished", 100, 100, 0.41, score=0.80123, best=0.81234, best_epoch=3
    ),
    RunStatus("rank=4,seed=0", "training", 50, 100, 0.52, score=0.7, best=0.7, best_epoch=1),
    RunStatus("rank=8,seed=0", "finished", 100, 100, 0.32, score=0.84, best=0.84311, best_epoch=2),
    RunStatus(
        "rank=16,seed=0", "diverged", 30, 100, math.nan, score=math.nan, best=0.9, best_epoch=1
    ),
    RunStatus("rank=32,seed=0", "training", 20, 100, 0.61),
]
BOLD = "\x1b[1"


def terminal(width=120, height=40, is_terminal=True, colours="standard"):
    return Console(
        file=io.StringIO(), force_terminal=is_terminal, width=width, height=height,
        color_system=colours if is_terminal else None, _environ={"TERM": "xterm"},
    )  # fmt: skip


def drawn(statuses, total=0, note="", smaller_is_better=False, **size):
    """What one update draws, with the styles."""
    console = terminal(**size)
    with LiveTable("accuracy", total, console, smaller_is_better) as table:
        console.file.truncate(console.file.seek(0))
        table.update(statuses, note)
        return console.file.getvalue().split("\n")


def bare(lines):
    return [Text.from_ansi(line).plain.rstrip() for line in lines]


def rows(lines):
    return [line.split()[0] for line in bare(lines) if line.startswith("rank=")]


def many(state, count, best=lambda i: None):
    return [RunStatus(f"rank=1,{state}={i}", state, best=best(i)) for i in range(count)]


def test_columns_and_order_of_the_rows():
    lines = drawn(RUNS, colours=None, note="program 2 of 3")
    header, *table = bare(lines)
    assert header.split() == [
        "run", "progress", "step", "train", "loss", "accuracy", "best", "(epoch)", "state"
    ]  # fmt: skip
    assert rows(lines) == [RUNS[i].name for i in (2, 5, 3, 1, 4, 0)]
    cells = {line.split()[0]: line.replace("━", "").split()[1:] for line in table}
    best, diverged = cells["rank=8,seed=0"], cells["rank=16,seed=0"]
    assert best == ["100%", "100/100", "0.32", "0.84", "0.8431", "(2)", "finished"]
    assert diverged == ["30%", "30/100", "-", "-", "0.9", "(1)", "diverged"]
    assert cells["rank=1,seed=0"] == ["0/?", "-", "-", "-", "waiting"]
    assert table[-2:] == [summary(RUNS), "program 2 of 3"]
    bars = {line.split()[0]: line.count("━") for line in table}
    assert [bars[s.name] for s in RUNS] == [0, 20, 10, 20, 6, 4]


@pytest.mark.parametrize("smaller, name", [(False, "rank=8,seed=0"), (True, "rank=4,seed=0")])
def test_the_best_row_is_bold_and_no_other(smaller, name):
    lines = drawn(RUNS, smaller_is_better=smaller)
    bold = [Text.from_ansi(line).plain.split()[0] for line in lines if BOLD in line]
    assert bold == [name]
    assert f"({name})" in bare(lines)[-1]


def test_no_row_is_bold_before_there_is_a_score():
    assert not any(BOLD in line for line in drawn(RUNS[-1:] + RUNS[:1]))


def test_a_long_sweep_shows_training_runs_then_the_best_finished_in_the_height():
    runs = many("finished", 300, best=lambda i: i / 1000) + many("training", 5)
    lines = drawn(runs, total=400, height=16)
    shown = rows(lines)
    assert shown[:5] == [f"rank=1,training={i}" for i in range(5)]
    assert shown[5:] == [f"rank=1,finished={299 - i}" for i in range(len(shown) - 5)]
    assert len(shown) > 8 and len(lines) < 16
    hidden = 305 - len(shown)
    assert bare(lines)[-2].startswith(f"and {hidden} more: {hidden} of {hidden} finished, 0 train")
    assert bare(lines)[-1].startswith("300 of 400 finished, 5 training, 0 diverged, 95 waiting; b")
    smaller = rows(drawn(runs, height=16, smaller_is_better=True))
    assert smaller[5:] == [f"rank=1,finished={i}" for i in range(len(shown) - 5)]


def test_all_rows_where_they_just_fit():
    runs = many("training", 7)
    for height in range(5, 12):
        lines = drawn(runs, height=height)
        fits = height >= 10  # beside the rows: header, summary, cursor
        assert len(lines) <= height - 1
        assert len(rows(lines)) == (7 if fits else height - 4)
        assert any(line.startswith("and ") for line in bare(lines)) != fits


def test_a_row_stays_one_line_with_both_ends_of_its_name_in_a_narrow_terminal():
    runs = [
        RunStatus(f"rank=8,alpha=16,learning_rate=0.0005,targets=[q,v],seed={i}", "training",
                  12345, 67890, 0.1234, score=0.5678, best=0.5678, best_epoch=12) for i in range(3)
    ]  # fmt: skip
    table = bare(drawn(runs, width=80))[1:4]
    for i, line in enumerate(table):
        assert line.startswith("rank=8") and f"={i} " in line and len(line) <= 80
        assert line.split()[-6:] == [
            "12345/67890",
            "0.1234",
            "0.5678",
            "0.5678",
            "(12)",
            "training",
        ]
    wide = bare(drawn(runs, width=200))[1:4]  # brackets are no markup
    assert all(line.startswith(s.name) for line, s in zip(wide, runs))


def test_a_long_headline_leaves_room_for_the_names():
    console = terminal(width=80)
    runs = [
        RunStatus(f"rank={i},seed=0", "training", 50, 9000, 0.1, score=0.8, best=0.8, best_epoch=12)
        for i in (1, 64)
    ]
    with LiveTable("matthews_correlation", 2, console) as table:
        table.update(runs)
    assert rows(console.file.getvalue().split("\n"))[:2] == ["rank=1,seed=0", "rank=64,seed=0"]


def test_in_place_and_the_cursor_is_back_after_an_interrupt():
    console = terminal()
    with pytest.raises(KeyboardInterrupt), LiveTable("accuracy", 6, console) as table:
        table.update(RUNS)
        table.update(RUNS)
        raise KeyboardInterrupt
    text = console.file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # hidden, shown
    assert text.rindex("\x1b[?25h") > text.rindex("rank=")
    assert "\x1b[1A" in text  # up, to draw over what was there


def plain(console):
    lines = console.file.getvalue().splitlines()
    console.file.truncate(console.file.seek(0))
    return lines


@pytest.mark.parametrize("environment", [{"is_terminal": False}, {"is_terminal": True}])
def test_plain_lines_once_per_epoch_and_state(environment, monkeypatch):
    console = terminal(width=20, **environment)
    console.is_interactive = False  # a dumb terminal has colours at most
    with LiveTable("accuracy", 2, console) as table:
        other, run = RunStatus("b", "waiting"), RunStatus("targets=[q,v]", "waiting")

        def update(**changes):
            nonlocal run
            run = dataclasses.replace(run, **changes)
            table.update([run, other], note="a clock 0:01")
            return plain(console)

        assert update() == []  # hundreds of runs wait
        assert update(state="training", steps=90) == [
            "targets=[q,v]: training, step 0/90, training loss -, accuracy -, best (epoch) -"
        ]
        assert [update(step=i, loss=1 / i) for i in range(1, 31)] == [[]] * 30
        assert update(score=0.7, best=0.7, best_epoch=1) == [
            "targets=[q,v]: training, step 30/90, training loss 0.03333, accuracy 0.7, best (epoch) 0.7 (1)"
        ]
        assert update(step=45) == []
        assert len(update(step=60, score=0.70001)) == 1  # not the best, and hardly another
        assert len(update(step=90, score=0.8, best=0.8, best_epoch=3, state="finished")) == 1
        assert update() == [] == update(program="p")
        (line,) = update(state="diverged", score=math.nan)
        assert "accuracy -, best (epoch) 0.8 (3)" in line
        assert update(score=float("nan")) == update(score=math.inf) == update(score=None) == []
    assert plain(console) == []  # nor at the end


def test_no_escape_codes_in_a_pipe_even_if_colours_are_forced():
    code = (
        "from experiments.sweep.live_table import *\n"
        "with LiveTable('accuracy', 1) as t: [t.update([RunStatus('a', 'training')])] * 3\n"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split("\n") == [
        "a: training, step 0/?, training loss -, accuracy -, best (epoch) -", ""
    ]  # fmt: skip


def test_summary():
    assert summary(RUNS) == (
        "2 of 6 finished, 2 training, 1 diverged, 1 waiting; best 0.8431 (rank=8,seed=0)"
    )
    assert summary(RUNS, smaller_is_better=True).endswith("; best 0.7 (rank=4,seed=0)")
    assert summary(RUNS, total=10).startswith("2 of 10 finished, 2 training, 1 diverged, 5 waiting")
    assert summary([]) == "0 of 0 finished, 0 training, 0 diverged, 0 waiting"
    broken = RunStatus("a", "finished", best=math.nan)
    for smaller in (False, True):
        assert summary([broken], smaller).endswith("0 waiting")
        assert summary([broken, RUNS[2]], smaller).endswith("best 0.7 (rank=4,seed=0)")


@pytest.mark.parametrize(
    "value, text",
    [(84.3, "84.3"), (0.843149, "0.8431"), (0.0, "0"), (-0.25, "-0.25"), (123456.7, "123457"),
     (1234.56, "1235"), (99999.0, "99999")],
)  # fmt: skip
def test_numbers(value, text):
    assert summary([RunStatus("a", "finished", best=value)]).endswith(f"best {text} (a)")


def read(values):
    return from_json(Record("status.json", values, "[0]."))


def test_status_files():
    for run in RUNS[:4]:
        assert read(json.loads(json.dumps(to_json(run)))) == run
    found = read(json.loads(json.dumps(to_json(RUNS[4]), allow_nan=False)))
    assert found == dataclasses.replace(RUNS[4], loss=None, score=None)
    np = pytest.importorskip("numpy")
    assert json.dumps(to_json(RunStatus("a", "training", loss=np.float32(0.5))))


def test_status_files_of_another_version_are_refused():
    good = to_json(RUNS[1])
    with pytest.raises(FileError, match=r"status.json, \[0\].epochs: found a key"):
        read({**good, "rank": 8, "epochs": 3})
    for changed in ({"steps": "4"}, {"state": "done"}, {"loss": True}, {"name": None}):
        with pytest.raises(FileError, match=rf"status.json, \[0\].{next(iter(changed))}: found"):
            read({**good, **changed})
    del good["steps"], good["program"]
    with pytest.raises(FileError, match=r"\[0\].steps: found nothing, expected an integer"):
        read(good)
