"""Tests of the command that counts the parameters of the paper's tables.

The expected counts are literals and the formulas of the paper's section 5.1, independent of the code.
"""

from __future__ import annotations

import json

import commands
import jax
import pytest
import torch
import transformers
from flax import nnx

from experiments import parameters
from experiments.paper import counts
from experiments.paper.rows import ROWS
from lora_jax import methods, partition
from lora_jax.models.deberta import DebertaClassifier
from lora_jax.models.deberta_config import SIZES, DebertaConfig

# Pre-trained values, without a head (and without RoBERTa's pooler).
TOTALS = {
    "roberta-base": 124_055_040,
    "roberta-large": 354_310_144,
    "deberta-v2-xxlarge": 1_564_549_632,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt3-175b": 174_604_259_328,
}
# Two classes: d^2 + d + 2 d + 2.
HEADS = {"roberta-base": 592_130, "roberta-large": 1_051_650, "deberta-v2-xxlarge": 2_363_906}
# Layers and width.
BASE, LARGE, XXL, M, L, G = (12, 768), (24, 1024), (48, 1536), (24, 1024), (36, 1280), (96, 12288)


def lora(size, rank, matrices):
    return 2 * size[0] * matrices * size[1] * rank


def adapter(size, r, per_layer=1, norms=0, layers=None):
    one = 2 * size[1] * r + r + size[1]
    return (layers or size[0]) * (per_layer * one + norms * 2 * size[1])


def adapter_h(size, r):
    return adapter(size, r, per_layer=2)


def adapter_l(size, r):
    return adapter(size, r, norms=1)


def pre_embed(size, tokens):
    return size[1] * tokens


def pre_layer(size, tokens):
    return size[0] * size[1] * tokens


# Row, trained values, whether they round to the paper's figure, whether the paper gives the setting.
EXPECTED = {
    2: [
        ("RoB-base (FT)*", 124_055_040, "125.0M", False, True),
        ("RoB-base (BitFit)*", 12 * (7 * 768 + 3072) + 768, "0.1M", True, True),
        ("RoB-base (AdptD)*", adapter(BASE, 48, layers=4), "0.3M", True, False),
        ("RoB-base (AdptD)*", adapter(BASE, 48), "0.9M", True, False),
        ("RoB-base (LoRA)", lora(BASE, 8, 2), "0.3M", True, True),
        ("RoB-large (FT)*", 354_310_144, "355.0M", False, True),
        ("RoB-large (LoRA)", lora(LARGE, 8, 2), "0.8M", True, True),
        ("RoB-large (AdptP)†", adapter(LARGE, 64), "3.0M", False, True),
        ("RoB-large (AdptP)†", adapter(LARGE, 16), "0.8M", True, True),
        ("RoB-large (AdptH)†", adapter_h(LARGE, 64), "6.0M", False, True),
        ("RoB-large (AdptH)†", adapter_h(LARGE, 8), "0.8M", True, True),
        ("RoB-large (LoRA)†", lora(LARGE, 8, 2), "0.8M", True, True),
        ("DeB-XXL (FT)*", 1_564_549_632, "1500.0M", False, True),
        ("DeB-XXL (LoRA)", lora(XXL, 16, 2), "4.7M", True, False),
    ],
    3: [
        ("GPT-2 M (FT)*", 354_823_168, "354.92M", False, True),
        ("GPT-2 M (AdapterL)*", adapter_l(M, 6), "0.37M", True, False),
        ("GPT-2 M (AdapterL)*", adapter_l(M, 224), "11.09M", True, False),
        ("GPT-2 M (AdapterH)", adapter_h(M, 112), "11.09M", False, False),
        ("GPT-2 M (FT_Top2)*", 2 * 12_596_224, "25.19M", True, True),
        ("GPT-2 M (PreLayer)*", pre_layer(M, 16), "0.35M", False, False),
        ("GPT-2 M (LoRA)", lora(M, 4, 2), "0.35M", False, True),
        ("GPT-2 L (FT)*", 774_030_080, "774.03M", True, True),
        ("GPT-2 L (AdapterL)", adapter_l(L, 8), "0.88M", True, False),
        ("GPT-2 L (AdapterL)", adapter_l(L, 248), "23.00M", True, False),
        ("GPT-2 L (PreLayer)*", pre_layer(L, 16), "0.77M", False, False),
        ("GPT-2 L (LoRA)", lora(L, 4, 2), "0.77M", False, True),
    ],
    4: [
        ("GPT-3 (FT)", 174_604_259_328, "175,255.8M", False, True),
        ("GPT-3 (BitFit)", 11 * 12288 * 96 + 12288, "14.2M", False, True),
        ("GPT-3 (PreEmbed)", pre_embed(G, 264), "3.2M", True, True),
        ("GPT-3 (PreLayer)", pre_layer(G, 16), "20.2M", False, True),
        ("GPT-3 (AdapterH)", adapter_h(G, 1), "7.1M", True, True),
        ("GPT-3 (AdapterH)", adapter_h(G, 8), "40.1M", True, True),
        ("GPT-3 (LoRA)", lora(G, 2, 1), "4.7M", True, True),
        ("GPT-3 (LoRA)", lora(G, 8, 2), "37.7M", True, True),
    ],
    15: [
        ("Fine-Tune", 174_604_259_328, "175B", True, True),
        ("PrefixEmbed l_p=32, l_i=8", pre_embed(G, 40), "0.4M", False, True),
        ("PrefixEmbed l_p=64, l_i=8", pre_embed(G, 72), "0.9M", True, True),
        ("PrefixEmbed l_p=128, l_i=8", pre_embed(G, 136), "1.7M", True, True),
        ("PrefixEmbed l_p=256, l_i=8", pre_embed(G, 264), "3.2M", True, True),
        ("PrefixEmbed l_p=512, l_i=8", pre_embed(G, 520), "6.4M", True, True),
        ("PrefixLayer l_p=2, l_i=2", pre_layer(G, 4), "5.1M", False, True),
        ("PrefixLayer l_p=8, l_i=0", pre_layer(G, 8), "10.1M", False, True),
        ("PrefixLayer l_p=8, l_i=8", pre_layer(G, 16), "20.2M", False, True),
        ("PrefixLayer l_p=32, l_i=4", pre_layer(G, 36), "44.1M", False, True),
        ("PrefixLayer l_p=64, l_i=0", pre_layer(G, 64), "76.1M", False, True),
        ("AdapterH r=1", adapter_h(G, 1), "7.1M", True, True),
        ("AdapterH r=4", adapter_h(G, 4), "21.2M", True, True),
        ("AdapterH r=8", adapter_h(G, 8), "40.1M", True, True),
        ("AdapterH r=16", adapter_h(G, 16), "77.9M", True, True),
        ("AdapterH r=64", adapter_h(G, 64), "304.4M", True, True),
        ("LoRA r_v=2", lora(G, 2, 1), "4.7M", True, True),
        ("LoRA r_q=r_v=1", lora(G, 1, 2), "4.7M", True, True),
        ("LoRA r_q=r_v=2", lora(G, 2, 2), "9.4M", True, True),
        ("LoRA r_q=r_k=r_v=r_o=1", lora(G, 1, 4), "9.4M", True, True),
        ("LoRA r_q=r_v=4", lora(G, 4, 2), "18.8M", False, True),
        ("LoRA r_q=r_k=r_v=r_o=2", lora(G, 2, 4), "18.8M", False, True),
        ("LoRA r_q=r_v=8", lora(G, 8, 2), "37.7M", True, True),
        ("LoRA r_q=r_k=r_v=r_o=4", lora(G, 4, 4), "37.7M", True, True),
        ("LoRA r_q=r_v=64", lora(G, 64, 2), "301.9M", False, True),
        ("LoRA r_q=r_k=r_v=r_o=64", lora(G, 64, 4), "603.8M", False, True),
        ("LoRA+PE r_q=r_v=8, l_p=8, l_i=4", 37_896_192, "37.8M", False, True),
        ("LoRA+PE r_q=r_v=32, l_p=8, l_i=4", 151_142_400, "151.1M", True, True),
        ("LoRA+PE r_q=r_v=64, l_p=8, l_i=4", 302_137_344, "302.1M", True, True),
        ("LoRA+PL r_q=r_v=8, l_p=8, l_i=4", 51_904_512, "52.8M", False, True),
    ],
}
# Section 7's sums, which the formulas above must give too.
EXACT = {
    102_144, 298_176, 894_528, 294_912, 786_432, 3_171_840, 811_392, 6_343_680, 835_968, 4_718_592,
    368_784, 11_089_152, 11_064_576, 25_192_448, 393_216, 737_280, 875_808, 23_002_848, 9_437_184,
    18_874_368, 37_748_736, 301_989_888, 603_979_776, 7_078_080, 21_234_432, 40_109_568,
    77_859_840, 304_361_472, 491_520, 884_736, 1_671_168, 3_244_032, 6_389_760, 12_988_416,
}  # fmt: skip
INSERTS_NOTHING = ("full", "bitfit", "top_layers")


@pytest.fixture(scope="module")
def rows():
    """What the command writes as JSON."""
    return json.loads(parameters.report(["2", "3", "4", "15"], "json"))


def test_the_rows_are_the_papers(rows):
    assert [len(EXPECTED[table]) for table in (2, 3, 4, 15)] == [14, 12, 8, 30]
    names = [(row["table"], row["row"], row["paper"]) for row in rows]
    assert names == [(t, row[0], row[2]) for t, table in EXPECTED.items() for row in table]


@pytest.mark.parametrize("table", EXPECTED)
def test_counts_are_those_of_the_formulas(rows, table):
    of_table = [row for row in rows if row["table"] == table]
    keys = ("row", "trained", "paper", "agrees", "settings_known")
    assert [tuple(row[key] for key in keys) for row in of_table] == EXPECTED[table]


def test_the_formulas_give_the_sums_of_the_fact_sheet(rows):
    assert {row["trained"] for row in rows} >= EXACT


def test_heads_and_totals(rows):
    for row in rows:
        assert row["head"] == HEADS.get(row["model"])
        inserted = 0 if row["method"][0]["name"] in INSERTS_NOTHING else row["trained"]
        assert row["total"] == TOTALS[row["model"]] + (row["head"] or 0) + inserted


def test_a_row_has_a_reason_if_and_only_if_it_disagrees(rows):
    for row in rows:
        assert (row["reason"] is None) == row["agrees"], row["row"]
        assert row["reason"] is None or 10 < len(row["reason"]) < 250
        assert row["settings_known"] or row["note"], row["row"]


def test_rows_that_one_figure_names_twice_have_its_notes(rows):
    table_4 = {(row["row"], row["paper"]): row["note"] for row in rows if row["table"] == 4}
    assert "r_q=r_k=r_v=r_o=4" in table_4["GPT-3 (LoRA)", "37.7M"]
    fifteen = {row["row"]: row for row in rows if row["table"] == 15}
    for row in rows:
        if row["table"] == 4 and row["note"] and row["note"].startswith("Table 15's row"):
            same = [r for r in fifteen.values() if r["method"] == row["method"]]
            setting = row["note"].removeprefix("Table 15's row ").split(" by ")[0].rstrip(".")
            assert [r["row"].endswith(setting) for r in same] == [True], row["row"]


def test_methods_go_through_json(rows):
    for row, source in zip(rows, ROWS, strict=True):
        assert methods.from_json(row["method"]) == source.method


def test_values_of_printed_figures(rows):
    assert {row["paper"]: row["paper_value"] for row in rows if row["table"] in (3, 4)} == {
        "354.92M": 354_920_000, "0.37M": 370_000, "11.09M": 11_090_000, "25.19M": 25_190_000,
        "0.35M": 350_000, "774.03M": 774_030_000, "0.88M": 880_000, "23.00M": 23_000_000,
        "0.77M": 770_000, "175,255.8M": 175_255_800_000, "14.2M": 14_200_000, "3.2M": 3_200_000,
        "20.2M": 20_200_000, "7.1M": 7_100_000, "40.1M": 40_100_000, "4.7M": 4_700_000,
        "37.7M": 37_700_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("count", "figure", "expected"),
    [
        (294_912, "0.3M", True),
        (250_000, "0.3M", True),  # half up
        (249_999, "0.3M", False),
        (349_999, "0.3M", True),
        (350_000, "0.3M", False),
        (355_359_744, "355.0M", False),
        (355_049_999, "355.0M", True),
        (355_359_744, "355M", True),
        (301_989_888, "301.9M", False),
        (174_604_259_328, "175B", True),
        (174_499_999_999, "175B", False),
        (175_255_849_999, "175,255.8M", True),
        (175_255_850_000, "175,255.8M", False),
    ],
)
def test_rounding(count, figure, expected):
    assert counts.rounds_to(count, figure) is expected


@pytest.mark.parametrize("figure", ["", "M", "0.35", "0.35K", ".5M", "-1M", "1.M", "1 M", "0.35M "])
def test_no_figure(figure):
    with pytest.raises(ValueError, match="is not a printed figure such as 0.35M"):
        counts.printed(figure)


def test_models_are_shapes_only():
    model = counts.abstract("gpt3-175b")
    leaves = jax.tree.leaves(nnx.state(model))
    assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert counts.abstract("gpt3-175b") is model


# --- DeBERTa --------------------------------------------------------------------------------------


def deberta(kind, **sizes):
    """transformers' model on the meta device."""
    config = transformers.DebertaV2Config(
        relative_attention=True, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], conv_act="gelu", position_biased_input=False,
        type_vocab_size=0, max_position_embeddings=512, **sizes,
    )  # fmt: skip
    with torch.device("meta"):
        return kind(config)


XXLARGE = {
    "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 48,
    "vocab_size": 128100, "position_buckets": 256, "conv_kernel_size": 3,
}  # fmt: skip
SMALL = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": 70,
    "position_buckets": 5, "conv_kernel_size": 5,
}  # fmt: skip


def torch_count(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_the_published_ones():
    config = SIZES["deberta-v2-xxlarge"]
    assert {name: getattr(config, name) for name in XXLARGE} == XXLARGE
    assert (config.span, config.longest, config.heads) == (256, 512, 24)


def test_deberta_xxlarge_has_transformers_count():
    shapes = counts.abstract("deberta-v2-xxlarge")
    found = partition.count(partition.parameters(shapes.encoder))
    theirs = deberta(transformers.DebertaV2Model, num_attention_heads=24, **XXLARGE)
    assert found == torch_count(theirs) == 1_564_549_632


def test_every_leaf_of_deberta_has_its_tensors():
    """Sizes without common factors: a wrong one cannot hide behind another."""
    config = DebertaConfig(
        num_attention_heads=4, max_position_embeddings=512, relative_attention=True,
        pos_att_type=("p2c", "c2p"), share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, **SMALL,
    )  # fmt: skip
    shapes = nnx.eval_shape(lambda: DebertaClassifier(config, 7, nnx.Rngs(0)))
    model = deberta(
        transformers.DebertaV2ForSequenceClassification, num_attention_heads=4, num_labels=7,
        pooler_hidden_size=24, **SMALL,
    )  # fmt: skip
    assert partition.count(partition.parameters(shapes)) == torch_count(model)
    ours = []
    for path, leaf in partition.parameters(shapes).items():
        stacked = path.startswith("encoder/layers/")
        assert not stacked or leaf.shape[0] == 3
        ours += 3 * [leaf.shape[1:]] if stacked else [leaf.shape]
    theirs = [tuple(p.shape) for p in model.parameters()]
    assert sorted(map(sorted, ours)) == sorted(map(sorted, theirs))


# --- Command line ---------------------------------------------------------------------------------


def test_markdown(rows):
    text = parameters.report(["3", "15"], "markdown")
    lines = text.splitlines()
    assert text.endswith("\n") and [line[:11] for line in lines if line.startswith("#")] == [
        "## Table 3:", "## Table 15",
    ]  # fmt: skip
    for table in (3, 15):
        agree = sum(row["agrees"] for row in rows if row["table"] == table)
        assert f"{agree} of {len(EXPECTED[table])} rows round to the paper's figure." in lines
    cells = [cell.strip() for cell in next(x for x in lines if "M (LoRA)" in x).split("|")[1:-1]]
    method = '`lora("qkv[q,v]", rank=4, alpha=32)`'
    assert cells[:5] == ["GPT-2 M (LoRA)", method, "393,216", "355.2M", "0.35M"]
    number = cells[5].removeprefix("no ")
    assert cells[6] == "paper"
    assert any(line.startswith(f"- {number} The figure is the label") for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 12 + 30 + 4 and len({len(line) for line in table[:14]}) == 1
    assert max(map(len, lines)) < 170 and {line.count("|") for line in table} == {8}
    with_head = parameters.report(["2"], "markdown").splitlines()
    assert {line.count("|") for line in with_head if line.startswith("|")} == {9}


def test_short_calls():
    shown = [parameters.short(row.method) for row in ROWS]
    assert shown[:5] == [
        "full()", "bitfit()", "adapter_d(size=48, layers=4)", "adapter_p(size=48)",
        'lora("query value", rank=8)',
    ]  # fmt: skip
    assert shown[-1] == 'lora("qkv[q,v]", rank=8) + prefix_layer(prefix=8, infix=4)'
    assert 'lora("qkv[q,k,v] output", rank=2)' in shown and "top_layers(count=2)" in shown


def command(*arguments):
    return commands.run("experiments.parameters", *arguments)


def test_command_prints_markdown_and_writes_json(tmp_path, rows):
    done = command("--tables=4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == parameters.report(["4"], "markdown")
    path = tmp_path / "new" / "parameters.json"
    done = command("--tables=2,3,4,15", "--format=json", f"--output={path}")
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text()) == rows
    assert str(path) in done.stdout and list(path.parent.iterdir()) == [path]


def test_command_ends_with_one_line_on_bad_arguments():
    done = command("--tables=2,5")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1] == (
        "error: unknown tables ['5']; known tables are [2, 3, 4, 15]"
    )


@pytest.mark.parametrize(
    ("tables", "form", "message"),
    [
        (["2", "x"], "json", r"unknown tables \['x'\]; known tables are \[2, 3, 4, 15\]"),
        (["02"], "json", "unknown tables"),
        ([], "json", "no table is given; known tables are"),
        (["2"], "csv", r"unknown format 'csv'; known formats are \['markdown', 'json'\]"),
    ],
)
def test_bad_arguments(tables, form, message):
    with pytest.raises(ValueError, match=message):
        parameters.report(tables, form)


def test_a_table_asked_for_twice_comes_once():
    assert parameters.choose(["15", "2", "15"]) == [15, 2]
