"""Tiny language models with random weights, small enough to list every outcome.

Vocabulary 5, length 4, EOS 4: 1 + 4 + 16 + 64 + 256 = 341 outcomes. The weights are large
enough for the laws to be far from uniform, so a swapped position or direction shows.
"""

import itertools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from infer_align.torch.policies import CausalLM

VOCAB, LENGTH, EOS = 5, 4, 4
PROMPTS = [[1, 2], [3], [0, 1, 2, 3, 1]]
"""Of unequal lengths, so that padding happens."""

_TOKENS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": EOS}
_SMALL = {
    **_TOKENS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.6,
}


def _gpt2(dropout: float = 0.1) -> PreTrainedModel:
    # Dropout as GPT-2 ships it: it must be inert.
    return GPT2LMHeadModel(
        GPT2Config(
            **_TOKENS,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=32,
            initializer_range=0.6,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )


FAMILIES = {
    "gpt2": _gpt2,  # learnt absolute positions: padding on the wrong side shows
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SMALL, head_dim=4)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=3)),
}
"""Name of a family -> a function that makes one model with random weights."""


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A model of one family, seeded without touching torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FAMILIES[family]().to(dtype)


def tiny_lm(
    family: str = "gpt2",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    eos_token_ids: tuple[int, ...] = (EOS,),
    max_new_tokens: int = LENGTH,
    token_budget: int = 2048,
) -> CausalLM:
    """A `CausalLM` without a tokenizer; prompts are token ids."""
    return CausalLM(
        tiny_model(family, seed=seed, dtype=dtype),
        None,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        token_budget=token_budget,
    )


def all_outcomes(
    eos_token_ids: tuple[int, ...] = (EOS,), *, vocab: int = VOCAB, length: int = LENGTH
) -> torch.Tensor:
    """Every outcome (count, length), filled with the first EOS id after its end."""
    going = [v for v in range(vocab) if v not in eos_token_ids]
    rows = []
    for size in range(length):
        for head in itertools.product(going, repeat=size):
            for eos in eos_token_ids:
                rows.append([*head, eos] + [eos_token_ids[0]] * (length - size - 1))
    rows += [list(full) for full in itertools.product(going, repeat=length)]
    return torch.tensor(rows)


def tiny_tokenizer(*, adds_bos: bool = False, adds_eos: bool = False) -> PreTrainedTokenizerFast:
    """A word tokenizer over the five tokens ``<s> a b c </s>``, with a chat template."""
    words = {"<s>": 0, "a": 1, "b": 2, "c": 3, "</s>": EOS}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = (["<s>"] if adds_bos else []) + ["$A"] + (["</s>"] if adds_eos else [])
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[("<s>", 0), ("</s>", EOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = (
        "<s> {% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}c{% endif %}"
    )
    return tokenizer
