"""Methods that train a selection of the model's own leaves: all, the head, biases, the last layers."""

from __future__ import annotations

from lora_jax import patterns
from lora_jax.checks import Integer, flag, integer
from lora_jax.method import Method
from lora_jax.methods import common
from lora_jax.methods.added_biases import BiasInsertion
from lora_jax.methods.cuts import MOST_LAYERS, CutInsertion
from lora_jax.partition import Rule

ANY_BIAS = Rule(common.BIAS.pattern, "bias")  # pre-trained or added


def full(head: str | None = None) -> Method:
    """Full fine-tuning: every parameter trains. Groups: `base`, and `head` if given."""
    return common.method("full", {"head": head}, (), Rule(".*", "base"))


def head_only(head: str) -> Method:
    """Trains the task head on the frozen encoder. Group: `head`."""
    return common.method("head_only", {"head": head}, ())


def leaves(pattern: str, head: str | None = None) -> Method:
    """Chosen pre-trained parameters train whole, such as norms or an output embedding. Group: `leaves`.

    In a combination, `lora(...) + leaves("lm_head/kernel")`, it is what PEFT calls `modules_to_save`;
    unlike a head these are parameters of the base.

    Args:
      pattern: regular expression for the paths of the parameters.
      head: regular expression for the task head's leaves.
    """
    patterns.check(pattern, "'leaves'")
    rule = Rule(pattern, "leaves", inserted="")
    return common.method("leaves", {"pattern": pattern, "head": head}, (), rule)


def bitfit(head: str | None = None, *, add: bool = False) -> Method:
    """BitFit (Zaken et al. 2021; paper, section 5.1): every pre-trained bias trains. Group: `bias`.

    Args:
      head: regular expression for the task head's leaves.
      add: linear layers without a bias get one that starts at 0 and trains, too. Models of the Llama kind
        have few biases or none, so that BitFit as it is published cannot be done there.
    """
    add = flag("add", add)
    insertions, rule = ((BiasInsertion(),), ANY_BIAS) if add else ((), common.BIAS)
    return common.method("bitfit", {"head": head, "add": add}, insertions, rule)


def top_layers(count: Integer = 2, head: str | None = None) -> Method:
    """The last `count` layers train (FT-Top2 of Tables 3, 13 and 14). Group: `top`.

    The final LayerNorm and the embeddings stay frozen, which gives the paper's count.

    Args:
      count: of layers, less than the model has.
      head: regular expression for the task head's leaves.
    """
    count = integer("count", count, most=MOST_LAYERS)
    top = Rule(last_layers(count) + "/.*", "top", inserted="")
    return common.method("top_layers", {"count": count, "head": head}, (CutInsertion(count),), top)


def last_layers(count: Integer) -> str:
    """Regular expression for the start of the paths of the last layers, however the stack is cut."""
    return rf"(.*/)?last_({'|'.join(map(str, range(count, 0, -1)))})/block"
