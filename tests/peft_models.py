"""Small random models with adapters of PEFT, and the logits of both sides."""

from __future__ import annotations

import copy
import functools
import json

import deberta_models
import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

from experiments.convert import peft as convert
from lora_jax import adapters
from lora_jax.data.batch import Inputs
from lora_jax.models import hub

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20, "num_labels": 6,
}  # fmt: skip
_LLAMA = {**_SIZES, "num_key_value_heads": 1, "pad_token_id": 0}
_GPT2 = {
    "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "pad_token_id": 0,
    "num_labels": 6, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_DISTILBERT = {
    "vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
    "max_position_embeddings": 20, "num_labels": 6,
}  # fmt: skip
_KINDS = {  # settings, and the class of the pre-trained model
    "bert": (transformers.BertConfig(**_SIZES), "BertModel"),
    "roberta": (transformers.RobertaConfig(**_SIZES, pad_token_id=1), "RobertaModel"),
    "deberta": (
        transformers.DebertaV2Config(**_SIZES, **deberta_models.PUBLISHED_KIND),
        "DebertaV2Model",
    ),
    "electra": (transformers.ElectraConfig(**_SIZES, embedding_size=6), "ElectraModel"),
    "distilbert": (transformers.DistilBertConfig(**_DISTILBERT), "DistilBertModel"),
    "gpt2": (transformers.GPT2Config(**_GPT2), "GPT2LMHeadModel"),
    "llama": (transformers.LlamaConfig(**_LLAMA), "LlamaForCausalLM"),
    "tied": (transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True), "LlamaForCausalLM"),
    "qwen2": (transformers.Qwen2Config(**_LLAMA), "Qwen2ForCausalLM"),
}
IDS = np.random.default_rng(0).integers(3, 40, (2, 7))
ENCODERS = ("bert", "roberta", "deberta", "electra", "distilbert")


@functools.cache
def _random(name):
    """A pre-trained model, with and without a head for classification, with equal weights."""
    config, kind = _KINDS[name]
    torch.manual_seed(0)
    base = getattr(transformers, kind)(config)
    family = kind.removesuffix("Model").removesuffix("ForCausalLM").removesuffix("LMHead")
    headed = getattr(transformers, f"{family}ForSequenceClassification")(config)
    with torch.no_grad():
        for model in (base, headed):
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
    headed.base_model.load_state_dict(base.base_model.state_dict(), strict=False)
    return base.eval(), headed.eval()


def write_bases(root):
    """The pre-trained models as folders."""
    for name in _KINDS:
        _random(name)[0].save_pretrained(root / name)


read_base = functools.cache(convert.Base)


def model_of(name, with_head):
    """A copy, since PEFT changes it."""
    return copy.deepcopy(_random(name)[with_head])


def logits_of(model):
    model.eval()
    with torch.no_grad():
        output = model(input_ids=torch.tensor(IDS))
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()


def trained(name, with_head, **settings):
    """A model of PEFT whose trained parameters have moved."""
    task = {"task_type": "SEQ_CLS"} if with_head else {}
    config = peft.LoraConfig(**{"r": 3, **task, **settings})
    torch.manual_seed(1)
    model = peft.get_peft_model(model_of(name, with_head), config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in path:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def head_of(adapter):
    kernels = ("head/output/kernel", "head/score/kernel")
    return next((v for p, v in adapter.values.items() if p in kernels), None)


def our_logits(folder, base, name):
    adapter = adapters.load_adapter(folder)
    head = head_of(adapter)
    whole = read_base(
        base, 2 if head is None else head.shape[-1],
        decoder_head=head is not None and name not in ENCODERS,
    )  # fmt: skip
    model = adapters.attach(whole.model, adapter, hub.HEAD)
    return run(model, name, head is not None)


def run(model, name, with_head):
    model.eval()
    zeros, length = np.zeros_like(IDS), IDS.shape[1]
    positions = np.broadcast_to(np.arange(length), IDS.shape)
    inputs = Inputs(IDS, np.array([[1], [2]]) + zeros, positions, zeros)
    if with_head:
        rows = np.arange(2)
        last = 0 if name in ENCODERS else length - 1
        return np.asarray(model(inputs, rows, np.full(2, last)))
    if name in ENCODERS:
        return np.asarray(model.encoder(inputs))
    rows, columns = np.divmod(np.arange(IDS.size), length)
    return np.asarray(model(inputs, rows, columns)).reshape(*IDS.shape, -1)


def assert_same_tensors(one, other):
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert value.tobytes() == second[key].tobytes(), key


def settings_of(folder):
    return json.loads((folder / CONFIG).read_text())


def without_note(folder, new):
    """The same adapter, as if it had been trained here."""
    adapter = adapters.load_adapter(folder)
    notes = {key: value for key, value in adapter.notes.items() if key != "peft"}
    return adapters.save_adapter(
        new,
        adapter.values,
        adapter.groups,
        adapter.method,
        adapter.base,
        notes,
        state=adapter.state,
    )
