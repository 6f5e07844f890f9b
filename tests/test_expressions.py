"""Patterns of users: what `re` says of them, within bounded time and memory, wherever they are given."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_jax as lj
from lora_jax import expressions, fingerprints, methods, partition, patterns
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.training.optimizer import NO_DECAY, adamw

# --- What `re` says -------------------------------------------------------------------------------

ATOMS = st.sampled_from([
    "a", "b", "/", "0", ".", "_", "-", "lora", "layers", r"\d", r"\w", r"\W", r"\s", r"\.", r"\b", r"\/",
    r"\Z", "[ab]", "[^a/]", "[a-c0]", "[]a]", r"[\d/]", "^", "$", "{", "}", "{}", "{,}",
])  # fmt: skip
COUNTS = st.sampled_from([
    "", "", "", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{0,}", "{2,}?", "*+", "++",
    "?+", "{1,2}+", "{e}", "{i<=1}",
])  # fmt: skip
OPENINGS = st.sampled_from(
    ["(", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P<n>", "(?i:", "(?-i:"]
)


def _larger(inner):
    sequence = st.lists(st.tuples(inner, COUNTS).map("".join), max_size=4).map("".join)
    either = st.lists(sequence, min_size=1, max_size=3).map("|".join)
    group = st.tuples(OPENINGS, either).map(lambda two: f"{two[0]}{two[1]})")
    return group | either | st.sampled_from([r"\1", "(?(1)a|b)", "(?P=n)"])


PATTERNS = st.tuples(
    st.sampled_from(["", "", "", "(?i)", "(?s)", "(?a)", "(?x)"]),
    st.recursive(ATOMS, _larger, max_leaves=12),
).map("".join)
TEXTS = st.lists(
    st.text("abAB01/._-{}e", min_size=1, max_size=8)
    | st.sampled_from(["layers/0/block", "lora/a", "layers", "aab/ab"]),
    min_size=4, max_size=12,
)  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(PATTERNS, TEXTS)
def test_an_expression_means_what_re_means(pattern, texts):
    try:
        expected = re.compile(pattern)
    except re.error:
        with pytest.raises(InputError, match="is no regular expression"):
            Expression(pattern, "target")
        return
    try:
        expression = Expression(pattern, "target")
    except InputError:
        assert "{" in pattern  # which is text for `re`, and something else for `regex`
        return
    for text in texts:
        assert expression.matches(text) == (expected.fullmatch(text) is not None)


PATHS = [
    "", "head/dense/kernel", "encoder/layers/block/attention/query/kernel", "bias", "embeddings/word",
    "layers/block/attention/qkv/bias", "layers/last_2/block/feed_forward/norm/scale", "head/output/bias",
    "encoder/layers/block/attention/query/lora/a", "first/block/attention", "model/layers/11/mlp/up_proj",
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        NO_DECAY, methods.HEAD, methods.common.EMBEDDING, methods.common.SUBLAYERS,
        methods.common.FEED_FORWARD, methods.common.BIAS.pattern, r".*/(query|value)", "head/.*", ".*",
        r"(?:layers/block/|encoder/)(?:.*bias)", r"model/layers/(1[0-1]|[0-9])/mlp/(up|down)_proj",
        r"(.*/)?last_(2|1)/block/.*", r"(?:head/.*)|(?:.*/bias)", "",
    ],
)  # fmt: skip
def test_patterns_of_the_project_mean_what_re_means(pattern):
    expected = [path for path in PATHS if re.fullmatch(pattern, path)]
    assert Expression(pattern, "target").among(PATHS) == expected


def test_patterns_that_programs_write_are_long():
    names = [f"model/layers/{number}/block/attention/query" for number in range(1500)]
    pattern = "|".join(names)
    assert len(pattern) > 50_000
    assert Expression(pattern, "target").among([*names[::100], "other"]) == names[::100]


# --- Bounds ---------------------------------------------------------------------------------------

ENDLESS = [r"((a|b|c|.)*)*z", r"(?:(.*)(.*)(.*)(.*)\1\2\3)*x", r"(.|a|/|.|[a-z])*(.|a|/|.)*[xz]{3}"]
LONG_PATH = "encoder/layers/block/attention/query/" + "a" * 60 + "y/z/x/b/kernel1"


@pytest.fixture
def little_time(monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.05)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*x", *ENDLESS])
def test_an_expression_ends(pattern, little_time):
    try:
        assert not Expression(pattern, "target").matches(LONG_PATH)
    except InputError as error:
        assert pattern in str(error) or repr(pattern) in str(error)
        assert "without a repetition inside of a repetition" in str(error)


def test_the_time_is_that_of_all_paths_together(little_time):
    expression = Expression(ENDLESS[0], "target")
    for _ in range(3):
        with pytest.raises(InputError, match=r"target rule .* was stopped after 0\.05 seconds at"):
            expression.matches(LONG_PATH)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "missing \\)"), ("[", "unterminated"), ("a**", "multiple repeat"), ("\\", "bad escape"),
        ("(" * 50_000 + ")" * 50_000, "nested too deep"), ("a{99999999999}", "too large"),
        ("(a{65535}){65535}", "written out"), ("((a{999}){999}){999}", "written out"),
        ("(?x)(a{65535}){65535}", "flag x"), ("(?#[)(a{65535}){65535}(?#])", "written out"),
        ("a" * 2**21, "2,097,152 characters"), ("a{e}", "is written"), ("layers/{i}", "is written"),
        ("[[:alpha:]]", "another language"), (r"\p{L}", "bad escape"), ("(?R)", "unknown extension"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_no_regular_expression(pattern, reason):
    with pytest.raises(
        InputError, match=f"target rule .* is no regular expression: .*{reason}"
    ) as caught:
        Expression(pattern, "target")
    assert len(str(caught.value)) < 600


def test_memory_is_bounded():
    """As written out it would have four thousand million characters."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from lora_jax.expressions import Expression\n"
        "try: Expression('(a{65535}){65535}', 'target')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "written out" in done.stdout, done.stderr


# --- Wherever they are given ----------------------------------------------------------------------


class Model(nnx.Module):
    def __init__(self, rngs):
        # the long name is what makes patterns backtrack
        setattr(self, "a" * 60 + "y_z_x_b1", nnx.Linear(2, 2, rngs=rngs))
        self.head = nnx.Linear(2, 2, rngs=rngs)


def _decayed(pattern):
    params = {LONG_PATH: jnp.ones(2)}
    transformation = adamw(dict.fromkeys(params, "lora"), 0.1, weight_decay=0.1, no_decay=pattern)
    return transformation.update(params, transformation.init(params), params)


PLACES = {
    "targets": lambda p: lj.lora(p).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "target of a mapping": lambda p: lj.lora({p: {}}).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "target of parameters": lambda p: lj.lora(p, axes="io").insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "exclude": lambda p: lj.lora(nnx.Linear, exclude=p).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "head": lambda p: lj.bitfit(head=p).labels(Model(nnx.Rngs(0))),
    "head of lora": lambda p: lj.lora("all-linear", head=p).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "head of a base": lambda p: fingerprints.base_parameters(Model(nnx.Rngs(0)), p),
    "label": lambda p: partition.labels({LONG_PATH: 0}, [partition.Rule(p, "lora")]),
    "no_decay": _decayed,
    "bottleneck": lambda p: lj.adapter_h(2, targets=p).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
    "tokens": lambda p: lj.prefix_embed(1, tokens=p).insert(Model(nnx.Rngs(0)), jax.random.key(0)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_bad_patterns_are_named_wherever_they_are_given(place, little_time):
    with pytest.raises(InputError, match=r"'\(' is no regular expression: missing \)"):
        PLACES[place]("(")
    with pytest.raises(InputError, match=r"was stopped after 0\.05 seconds"):
        PLACES[place](r"((a|b|c|.)*)*z.(?!.)")


@pytest.mark.wrong_types
@pytest.mark.parametrize("pattern", [5, ["a"], {"a": 1}, b"a"], ids=str)
def test_patterns_are_text(pattern):
    for make in (
        lambda: lj.bitfit(head=pattern), lambda: lj.prefix_embed(1, tokens=pattern),
        lambda: lj.adapter_h(2, targets=pattern), lambda: adamw({}, 0.1, no_decay=pattern),
        lambda: partition.labels({"a": 0}, [partition.Rule(pattern, "lora")]),
    ):  # fmt: skip
        with pytest.raises(InputError, match="must be"):
            make()


def test_an_invalid_target_is_refused_before_there_is_a_model():
    for make in (lambda: lj.lora("("), lambda: lj.lora(".*", exclude=["a", "["])):
        with pytest.raises(InputError, match="is no regular expression"):
            make()
    assert lj.lora("attention/query")  # a plain name
    patterns.check("plain", "target", names=True)


def test_nearest_paths_of_many_words_are_found_once_per_name():
    paths = [f"layers/{i}/block/query" for i in range(400)]
    pattern = " ".join("abcdefgh"[i % 8] for i in range(100)) + r"layers/7/quary\d"
    assert len(patterns.nearest(pattern, paths)) == 5


def test_optimizer_still_decays_what_is_not_exempt():
    params = {"query/lora/a": jnp.ones(2), "query/bias": jnp.ones(2)}
    transformation = adamw(dict.fromkeys(params, "lora"), 0.5, weight_decay=0.1)
    zero = {path: jnp.zeros(2) for path in params}
    updates, _ = transformation.update(zero, transformation.init(params), params)
    new = optax.apply_updates(params, updates)
    assert new["query/lora/a"][0] == pytest.approx(0.95) and new["query/bias"][0] == 1
