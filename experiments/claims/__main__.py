"""What finished comparisons say of the claims of "LoRA Without Regret" (2025, doi 10.64434/tml.20250929).

    python -m experiments.claims --main=DIR [--large_batch=DIR] [--short=DIR] --output=DIR

Every DIR but the last is the folder of a comparison of configs/compare/regret.py that has ended (see
experiments.compare): --main with the usual budget, --large_batch with larger batches, --short with fewer
updates. Writes

    OUTPUT/claims.md       each claim with what was measured, its interval, the rule and the verdict
    OUTPUT/claims.json     the same, with the values of every seed
    OUTPUT/claims.png      best rates over full fine-tuning's by rank, and the best scores against its
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments.claims import page
from experiments.claims.claims import Comparisons, judged
from experiments.claims.regret import check_alike, read
from experiments.runs import command_line, folder
from lora_jax.errors import InputError


def compared(main: str, large_batch: str = "", short: str = "") -> Comparisons:
    """The comparisons in the folders that flags name; "" for none.

    Raises:
      InputError: a folder has no finished comparison of the config, or one that is not like the main one.
    """
    if not main:
        raise InputError("name a comparison and a folder for the results: --main=DIR --output=DIR")
    first = read(Path(main), "--main")
    others = {"--large_batch": large_batch, "--short": short}
    found = {flag: read(Path(own), flag) for flag, own in others.items() if own}
    for flag, own in found.items():
        check_alike(first, own, Path(others[flag]), flag)
    return Comparisons(first, found.get("--large_batch"), found.get("--short"))


def main(arguments: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        command_line.refuse_rest(arguments)
        found = compared(_MAIN.value, _LARGE_BATCH.value, _SHORT.value)
        if not _OUTPUT.value:
            raise InputError("name a folder for the results: --output=DIR")
        output = Path(_OUTPUT.value)
        folder.check_place(output)
        page.write(output, found, judged(found))
        command_line.say(f"written to {output}: {', '.join(page.FILES)}")


if __name__ == "__main__":
    _MAIN = flags.DEFINE_string("main", "", "Folder of the comparison with the usual budget.")
    _LARGE_BATCH = flags.DEFINE_string("large_batch", "", "Of one with larger batches.")
    _SHORT = flags.DEFINE_string("short", "", "Of one with fewer updates.")
    _OUTPUT = flags.DEFINE_string("output", "", "The folder to write.")
    command_line.run(main)
