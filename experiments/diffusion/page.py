"""A page that compares the ranks of a style: scores, parameters, and pictures before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.diffusion.scores import VARIETY
from experiments.runs.record import shown
from lora_jax import files
from lora_jax.analysis import plots

PAGE, FIGURE = "styles.md", "ranks.png"
_WORDS = {
    "content": "shows the digit, %",
    "style": "in the style, %",
    "others": "other digits kept, %",
}


def write(workdir: Path, results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Writes the page, and where pictures are scored a figure of rank against score.

    Args:
      workdir: of all runs.
      results: their records, by folder.
    """
    first = next(iter(results.values()))
    scored = [name for name in _WORDS if name in first.get("scores", {}).get("after", {})]
    words = [*(_WORDS[name] for name in scored), *(["variety"] if scored else [])]
    # Of other pictures than digits none are held out.
    loss = "held-out loss" if scored else "loss"
    columns = ["rank", "trained values", loss, *words, "s"]
    lines = [
        f"# {workdir.name}", "",
        f"{first['pictures']} pictures, on {first['model']}, {first['steps']:,} steps.", "",
        f"| {' | '.join(columns)} |", "|---:" * len(columns) + "|",
    ]  # fmt: skip
    if scored:
        values = " | ".join(_cells(first["scores"]["before"], scored))
        lines.append(f"| base | 0 | | {values} | |")
    lines += [_row(result, scored) for result in results.values()]
    lines += ["", *(f"![rank against score]({FIGURE})" for _ in scored[:1]), ""]
    for folder in results:
        name = folder.relative_to(workdir).as_posix()
        lines += [
            f"{name}: before and after",
            "",
            f"![before]({name}/before.png) ![after]({name}/after.png)",
            "",
        ]
    files.write_text(workdir / PAGE, "\n".join(lines))
    if scored:
        _figure(workdir / FIGURE, results, scored)


def _cells(scores: Mapping[str, float], scored: list[str]) -> list[str]:
    """Shares in percent, and the variety, of which earlier records have none."""
    shares = [f"{100 * scores[name]:.1f}" for name in scored]
    return [*shares, f"{scores[VARIETY]:.2f}" if VARIETY in scores else ""] if scored else []


def _rank(result: Mapping[str, Any]) -> int:
    rank: int = result["config"]["method"]["rank"]
    return rank


def _row(result: Mapping[str, Any], scored: list[str]) -> str:
    trained = result["parameters"]["trainable"]
    cells = [str(_rank(result)), f"{trained:,}", f"{shown(result['best']['loss']['mean']):.4f}"]
    cells += _cells(result["scores"]["after"], scored)
    return f"| {' | '.join([*cells, format(result['seconds'], '.0f')])} |"


def _figure(path: Path, results: Mapping[Path, Mapping[str, Any]], scored: list[str]) -> None:
    figure = Figure(figsize=(4.5, 3.0), layout="constrained")
    axes = figure.add_subplot()
    ranks = [_rank(result) for result in results.values()]
    for name, colour in zip(scored, plots.COLOURS, strict=False):
        values = [100 * result["scores"]["after"][name] for result in results.values()]
        axes.plot(ranks, values, "o-", color=colour, label=_WORDS[name])
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rank")
    axes.set_ylabel("samples, %")
    axes.set_ylim(0, 102)
    axes.legend()
    plots.save(figure, path)
