"""A GPT-2 with seeded random weights, vocabulary 5 and length 4: all 341 outcomes can be listed.

Rewarded are changes of token and the letters b and c, so strongly that the model starts far from
its target. NumPy's PCG64 draws the weights in the order of their names, on every platform alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from infer_align.torch import CausalLM

SEED, SCALE = 9, 0.25
VOCABULARY = ("<s>", "a", "b", "c", "</s>")
SIZES = {
    "vocab_size": 5, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16,
    "bos_token_id": 0, "eos_token_id": 4,
}  # fmt: skip
PROMPTS, MAX_NEW_TOKENS = None, 4
CHANGE_REWARD, TOKEN_REWARD, BETA = 0.5, (0.0, -0.3, 0.3, 0.3, 0.0), 0.25

# fmt: off
REFERENCE = {
    "log_z": {"value": 5.6736532426844, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
    "expected_reward": {"value": 2.0267180170595, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
    "expected_reward_of_prior": {"value": 0.57222621322111, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
    "forward_kl_of_prior": {"value": 2.4332188255538, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
    "reverse_kl_of_prior": {"value": 3.3847483897999, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
    "jensen_shannon_of_prior": {"value": 0.45053179184383, "tolerance": 1e-08,
        "source": "scripts/reference_numbers.py: 341 outcomes, plain Transformers"},
}
# fmt: on


def model() -> CausalLM:
    """Build the frozen model, with a tokenizer that writes its letters apart."""
    with torch.random.fork_rng():  # Transformers draws weights too, which are replaced
        network = GPT2LMHeadModel(GPT2Config.from_dict(SIZES)).double()
    rng = np.random.default_rng(SEED)
    for name, parameter in sorted(network.named_parameters()):
        drawn = SCALE * rng.standard_normal(tuple(parameter.shape))
        parameter.data = torch.from_numpy(drawn + float("ln_" in name and "weight" in name))
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return CausalLM(network, tokenizer, max_new_tokens=MAX_NEW_TOKENS)


def reward(y: Tensor, prompts: Any = None) -> Tensor:
    """Reward of token sequences (..., 4), the padding after EOS counted as more EOS."""
    letters = torch.tensor(TOKEN_REWARD, dtype=torch.float64, device=y.device)[y].sum(-1)
    return CHANGE_REWARD * (y[..., :-1] != y[..., 1:]).sum(-1) + letters


def target(lm: CausalLM) -> Callable[..., None]:
    """Return the target over continuations by ``lm`` as a Pyro program."""

    def program(prompts: Any = None) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("reward", reward(y) / BETA)

    return program


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""
    return {"reward": reward}
