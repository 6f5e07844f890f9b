"""Pre-trains a small GPT-2 on the training texts of E2E, WebNLG and DART.

    python -m experiments.pretrain --config=configs/pretrain/small.py --workdir=runs/small_gpt2 \\
        --config.data.source=FOLDER

For machines that reach no hub: DIR/model is a folder in Hugging Face's layout (config.json,
safetensors, tokenizer) which `experiments.nlg` takes as --config.model.name=DIR/model. A killed run
goes on with the same command.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from experiments.runs import command_line, fields, folder
from experiments.runs.language import Validation
from experiments.runs.record import check_converged, training_record
from experiments.runs.settings import mesh_for, model_arguments, train_settings
from lora_jax import digests, files, methods, partition
from lora_jax.data import data_to_text
from lora_jax.data.batches import TrainingBatches
from lora_jax.data.completions import TokenisedPairs, tokenise_pairs
from lora_jax.data.pairs import Pairs
from lora_jax.data.tokenizers import DECODER, check_texts, digest, load_tokenizer, size
from lora_jax.errors import InputError
from lora_jax.inputs import OWN_TOKENIZER, Inputs
from lora_jax.models import hub
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.partition import Params
from lora_jax.run_files import MODEL
from lora_jax.sharding.hosts import from_main, is_main, together
from lora_jax.sharding.mesh import shares
from lora_jax.sharding.placement import gather, in_host_memory
from lora_jax.tensor_files import Tensors
from lora_jax.training import Goal, Progress, Trainer, step

_END = "<|endoftext|>"
_TOKENIZER = "tokenizer"  # folder of a tokenizer that the run makes


def read_corpora(config: ConfigDict, split: str) -> list[Pairs]:
    """The rows of every corpus of the config; where only texts are asked for, without the data."""
    result = []
    for name, what in config.data.corpora.items():
        if what not in ("texts", "pairs"):
            raise InputError(f"config.data.corpora.{name} must be 'texts' or 'pairs', got {what!r}")
        pairs = data_to_text.read(name, split, config.data.source).take(config.data.max_examples)
        if pairs.notes:
            command_line.say(f"{name} {split}: {pairs.notes}")
        empty = [""] * len(pairs)
        result.append(
            pairs
            if what == "pairs"
            else Pairs(empty, pairs.completions, pairs.subsets, pairs.notes)
        )
    return result


def train_tokenizer(corpora: list[Pairs], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, of another size."""
    texts = [
        text for pairs in corpora for text in dict.fromkeys(pairs.contexts + pairs.completions)
    ]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[_END], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token=_END, bos_token=_END
    )


def _has_tokenizer(workdir: Path) -> bool:
    """Whether the run of a folder has made its tokenizer; else that may be another config's."""
    files = (workdir / "config.json", workdir / _TOKENIZER / "tokenizer_config.json")
    return all(path.exists() for path in files)


def get_tokenizer(
    config: ConfigDict, corpora: list[Pairs], folder: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer of the config: a folder's or the hub's by name, else trained once and kept."""
    if config.tokenizer.name:
        return load_tokenizer(hub.find(config.tokenizer.name), DECODER)

    def make() -> None:
        if not _has_tokenizer(folder.parent):
            shutil.rmtree(folder, ignore_errors=True)
            beside = folder.with_name(f".{folder.name}.new")
            train_tokenizer(corpora, config.tokenizer.vocab_size).save_pretrained(str(beside))
            beside.rename(folder)

    files.check_folder(folder)
    from_main(make)
    return load_tokenizer(folder, DECODER)


def documents(
    corpora: list[Pairs], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenisedPairs:
    """All rows as documents of which every token but the first is learned."""
    parts = [tokenise_pairs(pairs, tokenizer, max_length) for pairs in corpora]
    ids = [row for part in parts for row in part.ids]
    return TokenisedPairs(ids, np.ones(len(ids), np.int32), sum(part.cut for part in parts))


def pretrain(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the model, writes DIR/model and the run record DIR/result.json, and returns the record."""
    fields.check_config(config, fields.PRETRAIN)
    return folder.read_or_train(
        workdir,
        config,
        lambda: _read(config, workdir),
        lambda read: _pretrain(config, workdir, *read),
    )


def _read(config: ConfigDict, workdir: Path) -> tuple[dict[str, list[Pairs]], Inputs]:
    """The corpora by split, and digests of what the run is made from, if the folder's run has the same."""
    with together():
        corpora = {split: read_corpora(config, split) for split in ("train", "valid")}
    given = {
        f"{name} {split} data": digests.of_texts([*pairs.contexts, *pairs.completions])
        for split, several in corpora.items()
        for name, pairs in zip(config.data.corpora, several, strict=True)
    }
    if config.tokenizer.name:
        given["tokenizer"] = digest(hub.find(config.tokenizer.name))
    elif from_main(lambda: _has_tokenizer(workdir)):
        given[OWN_TOKENIZER] = from_main(lambda: digest(workdir / _TOKENIZER))
    folder.check_inputs(workdir, given)
    return corpora, given


def _pretrain(
    config: ConfigDict, workdir: Path, corpora: Mapping[str, list[Pairs]], given: Inputs
) -> dict[str, Any]:
    train, valid = corpora["train"], corpora["valid"]
    tokenizer = get_tokenizer(config, train, workdir / _TOKENIZER)
    if not config.tokenizer.name:  # it may have been made just now
        given = {**given, OWN_TOKENIZER: from_main(lambda: digest(workdir / _TOKENIZER))}
        folder.check_inputs(workdir, given)
    for name, pairs in zip(config.data.corpora, train, strict=True):
        texts = [*dict.fromkeys(pairs.contexts), *pairs.completions]
        check_texts(texts, tokenizer, f"{name} train")
    sizes = GPT2Config(vocab_size=size(tokenizer), **model_arguments(config))
    mesh = mesh_for(config, sizes.heads)
    with in_host_memory():
        model = GPT2(sizes, nnx.Rngs(config.seed))
    count = partition.count(partition.parameters(model))
    command_line.say(f"{count:,} parameters, {sizes.vocab_size:,} tokens")
    trainer = Trainer(
        model, methods.full(), train_settings(config), key=jax.random.key(config.seed), mesh=mesh
    )
    rows = documents(train, tokenizer, sizes.max_length)
    batches = TrainingBatches(
        rows, batch_size=config.batch_size, epochs=config.epochs, seed=config.seed,
        hidden_size=sizes.n_embd, max_length=sizes.max_length, parts=shares(mesh),
    )  # fmt: skip
    validation = Validation(
        documents(valid, tokenizer, sizes.max_length), width=sizes.n_embd,
        max_length=sizes.max_length, mesh=mesh,
    )  # fmt: skip
    predict = trainer.predictor(validation.function)

    def evaluate(trainable: Params) -> dict[str, float]:
        of_batch = predict(trainable)
        return validation.metrics([of_batch(batch) for batch in validation.batches])

    def save(trainable: Params, progress: Progress) -> None:
        whole = gather(trainable)
        with files.replaced_folder(workdir / "model") as new:
            if not is_main():
                return
            trained = trainer.model(whole)
            assert isinstance(trained, GPT2)
            begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
            begin = end if begin is None else begin
            hub.save_decoder(new, trained, eos_token_id=end, bos_token_id=begin)
            tokenizer.save_pretrained(str(new))

    goal = Goal(
        label="pretrain", headline="loss", evaluate=evaluate, on_best=save,
        smaller_is_better=True,
        on_resume=lambda progress: _check_model(workdir, progress),
    )  # fmt: skip
    train_run = trainer.prepare(
        batches, step.completion_loss(), goal, seed=config.seed, folder=workdir, inputs=given
    )
    folder.claim(workdir, config, given)
    run = {**train_run().record(), "shapes": batches.menu.shapes}
    record = {
        "task": "pretrain",
        "parameters": trainer.summary.counts(),
        "documents": len(rows),
        "notes": {name: p.notes for name, p in zip(config.data.corpora, train, strict=True)},
        **training_record([run], "loss"),
        "inputs": dict(given),
        "seeds": {str(config.seed): run},
        "config": folder.plain(config),
    }
    return folder.write_record(workdir, record, MODEL)


def _check_model(workdir: Path, progress: Progress) -> None:
    """Raises InputError if the model of the best epoch so far is not there any more."""
    path = workdir / MODEL

    def check() -> None:
        files.recover_folder(path)
        try:
            hub.read_decoder_config(path)
            Tensors(path / "model.safetensors")
            load_tokenizer(path, DECODER)
        except (ValueError, OSError) as error:
            raise InputError(
                f"{path} should hold the model of epoch {progress.best}, the best one before the checkpoint "
                f"from which this run goes on: {error}. Put it back from a copy, or delete "
                f"{workdir / 'checkpoints'} to train from the start"
            ) from error

    if progress.best:
        from_main(check)


def main(_: list[str]) -> None:
    """Runs the command."""
    with command_line.readable_errors():
        command_line.join_hosts(_HOSTS.value)
        if not _WORKDIR.value:
            raise InputError("--workdir=DIR is needed: the folder for checkpoints and results")
        record = pretrain(_CONFIG.value, Path(_WORKDIR.value))
        check_converged(record, Path(_WORKDIR.value))
    loss, seconds = record["best"]["loss"]["median"], record["seconds"]
    command_line.say(
        f"validation loss {loss:.4f}, {seconds:.0f} s, {record['tokens_per_second']:.0f} tokens/s"
    )
    command_line.say(f"model: {_WORKDIR.value}/model   record: {_WORKDIR.value}/result.json")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "Run configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run.")
    _HOSTS = command_line.hosts_flag()
    flags.mark_flag_as_required("config")
    command_line.run(main)
