"""How a model is run: a row's numbers are its own, whatever stands beside it in a pass."""

import itertools

import pytest
import torch

from infer_align import tilt
from infer_align.estimators import none, reinforce
from infer_align.torch import collect, fit, sampling
from tests.lm_zoo import PROMPTS, tiny_lm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def no_reward(y, *prompts):
    return torch.zeros(y.shape[:-1], dtype=torch.float64)


# The sampler's cache ----------------------------------------------------------------------


def test_a_prompt_a_row_in_another_order() -> None:
    """As many rows as prompts, sorted by length: the cache was left in the prompts' order."""
    lm = tiny_lm()
    for n in (1, 2):
        assert lm.sample_score_difference([[1, 2], [3]], n=n, generator=generator(n)) < 1e-10


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 3, 2]))[::5])
def test_draws_are_scored_alike_at_every_budget(order) -> None:
    prompts = [[*PROMPTS, [2, 0, 1]][i] for i in order]
    lm = tiny_lm(max_new_tokens=2)
    for n in (1, 2):
        y, _ = lm(prompts).sample_with_log_prob((n,), generator=generator(n))
        scored = lm(prompts).log_prob(y)
        for budget in range(5, 60):
            lm._network.token_budget = budget
            again, drawn = lm(prompts).sample_with_log_prob((n,), generator=generator(n))
            assert torch.equal(again, y)
            assert (drawn - scored).abs().max() < 1e-10, budget
        lm._network.token_budget = 2048


def test_a_step_on_one_outcome_a_prompt_starts_at_the_prior() -> None:
    lm = tiny_lm()
    target = tilt(lm, no_reward, beta=1.0)
    estimator = reinforce(baseline=none())
    steps = fit(lm.trainable(), target, estimator, prompts=PROMPTS[:2], n=1, steps=1)
    assert abs(next(iter(steps)).metrics["kl_prior"]) < 1e-10


def test_an_outcome_of_every_chunk_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    rows, plain = [], sampling.sample

    def wrong_at_last(network, prompts, index, length, source):
        tokens, log_prob = plain(network, prompts, index, length, source)
        rows.append(len(index))
        return tokens, log_prob + 0.5 * (len(index) == 2)

    monkeypatch.setattr(sampling, "sample", wrong_at_last)
    draws = collect(lm, tilt(lm, no_reward, beta=1.0), PROMPTS[:2], n=129)
    assert rows == [256, 2]
    assert draws.sample_score_difference == pytest.approx(0.5)
