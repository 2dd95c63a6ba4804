"""A GPT-2 with seeded random weights, vocabulary 5 and length 4: all 341 outcomes can be listed.

The target is a sharp tilt of the model towards the letters b and c, reward in units of beta
= 1. The weights are drawn by NumPy's PCG64 in the order of `named_parameters`, so they are the
same on every platform and no generator of torch is touched. Float64: its numbers are exact.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from infer_align.torch import CausalLM

SEED, SCALE = 0, 0.6
VOCABULARY = ("<s>", "a", "b", "c", "</s>")
EOS = 4
MAX_NEW_TOKENS = 4
BETA = 0.25
PROMPTS = None
LETTER_REWARDS = (-0.5, -0.3, 0.6, 0.2, 0.0)


def model() -> CausalLM:
    """Build the frozen model."""
    config = GPT2Config(
        vocab_size=5, n_embd=16, n_layer=2, n_head=4, n_positions=16, bos_token_id=0,
        eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng():  # Transformers initialises, and we overwrite
        network = GPT2LMHeadModel(config).double()
    rng = np.random.default_rng(SEED)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = SCALE * rng.standard_normal(tuple(parameter.shape))
            is_gain = "ln_" in name and name.endswith("weight")
            parameter.copy_(torch.from_numpy(1.0 + 0 * drawn if is_gain else drawn))
    words = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return CausalLM(network, tokenizer, max_new_tokens=MAX_NEW_TOKENS)


def reward(y: torch.Tensor) -> torch.Tensor:
    return torch.tensor(LETTER_REWARDS, dtype=torch.float64)[y].sum(-1)


def target(lm: CausalLM) -> Callable[..., Any]:
    def program() -> None:
        y = pyro.sample("y", lm())
        pyro.factor("reward", reward(y) / BETA)
    return program
