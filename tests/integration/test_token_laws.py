"""`per_token`: two tiny language models on every prefix, against all outcomes listed."""

import numpy as np
import pytest
import torch

from infer_align import diagnostics
from infer_align.spaces import Space
from infer_align.torch import CausalLM, per_token
from tests.lm_zoo import EOS, LENGTH, PROMPTS, VOCAB, tiny_model


def lm(seed: int, family: str = "gpt2", length: int = LENGTH) -> CausalLM:
    return CausalLM(
        tiny_model(family, seed=seed), None, max_new_tokens=length, eos_token_ids=(EOS,),
        token_budget=97,
    )  # fmt: skip


SPACE = Space.sequences(VOCAB, LENGTH, eos=EOS, pad=EOS, xp=torch)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_kl_by_position_sums_to_the_kl_of_the_sequences(family: str) -> None:
    policy, prior = lm(0, family)(PROMPTS), lm(1, family)(PROMPTS)
    every = SPACE.outcomes[:, None, :].expand(-1, len(PROMPTS), -1)
    with torch.no_grad():
        log_policy, log_prior = policy.log_prob(every), prior.log_prob(every)
    tokens = per_token(policy, prior, every)
    torch.testing.assert_close(tokens.log_policy.sum(-1), log_policy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tokens.log_prior.sum(-1), log_prior, rtol=1e-9, atol=1e-9)
    assert bool((tokens.kl >= -1e-12).all())
    kl = float((log_policy.exp() * (log_policy - log_prior)).sum(0).mean())
    entropy = -float((log_policy.exp() * log_policy).sum(0).mean())
    for values, total in (
        (tokens.kl, kl), (tokens.log_policy - tokens.log_prior, kl), (tokens.entropy, entropy),
    ):  # fmt: skip
        found = diagnostics.by_position(values, tokens.lengths, log_prob=log_policy)
        assert float(found.total) == pytest.approx(total, rel=1e-9)
    swapped = per_token(prior, policy, every)
    torch.testing.assert_close(swapped.entropy, tokens.entropy_prior)
    ended = np.arange(LENGTH) >= tokens.lengths.numpy()[..., None]
    assert float(tokens.kl[torch.from_numpy(ended)].abs().max()) == 0.0


def test_an_adapter_is_compared_with_its_own_base() -> None:
    """Policy and prior share a network, of which each pass must switch the adapter."""
    base = lm(0)
    policy = base.trainable(lora=2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3
    value = base(PROMPTS).sample((5,))
    tokens = per_token(policy(PROMPTS), base(PROMPTS), value)
    with torch.no_grad():
        torch.testing.assert_close(tokens.log_prior.sum(-1), base(PROMPTS).log_prob(value))
        torch.testing.assert_close(tokens.log_policy.sum(-1), policy(PROMPTS).log_prob(value))
    assert float(tokens.kl.max()) > 1e-3


def test_two_laws_of_other_outcomes_are_refused() -> None:
    value = lm(0)(PROMPTS).sample((2,))
    with pytest.raises(ValueError, match="same ones"):
        per_token(lm(0)(PROMPTS), lm(1)([[1], [2], [3]]), value)
    with pytest.raises(ValueError, match="length"):
        per_token(lm(0)(PROMPTS), lm(1, length=3)(PROMPTS), value)
