"""`torch.BestOfN`: a Pyro distribution whose samples follow log_prob, also of language models."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from infer_align import RewardCdf, Space, best_of_n, diagnostics, exact
from infer_align.torch import BestOfN, CausalLM, assess, target

P = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
R = torch.tensor([[0.0, 1.0, 1.0, -math.inf], [2.0, -1.0, 2.0, 0.5]], dtype=torch.float64)
BASE = dist.Categorical(P)
ALL = torch.arange(4)[:, None].expand(4, 2)


def reward(y):
    return torch.gather(R.T.expand(len(y), 4, 2), 1, y[:, None, :])[:, 0]


@pytest.fixture(scope="module")
def lm():
    """341 outcomes, random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=4
    )
    return CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=3)


def matches(y, prompts):
    """How often the prompt's first token occurs before the end: ties abound."""
    first = torch.tensor([p[0] for p in prompts])
    return ((y == first[:, None]) & ((y == 4).cumsum(-1) == 0)).sum(-1).double()


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_samples_follow_log_prob_in_each_context(temperature):
    """χ² of 20,000 draws; probabilities sum to one and are those of the exact target."""
    torch.manual_seed(1)
    best = BestOfN(BASE, reward, 3, temperature=temperature)
    p = best.log_prob(ALL).exp().numpy()
    np.testing.assert_allclose(p.sum(axis=0), 1.0, rtol=1e-12)
    if temperature is None:
        known = best_of_n(BASE, reward, 3, RewardCdf.exact(R.T.numpy(), P.T.log().numpy()))
        np.testing.assert_allclose(known.log_density(ALL).exp(), p, rtol=1e-12)
    y = best.sample((5000, 4)).numpy()
    assert y.shape == (5000, 4, 2)
    for c in range(2):
        seen = np.bincount(y[..., c].ravel(), minlength=4)
        assert chisquare(seen, 20_000 * p[:, c]).pvalue > 1e-6


def test_continuations_of_a_language_model(lm):
    """All 341 outcomes of each prompt: probabilities sum to one, samples follow them."""
    torch.manual_seed(2)
    prompts = [[1, 2], [3]]
    best = BestOfN(lm(prompts), matches, 4, contexts=(prompts,))
    space = Space.sequences(5, 3, eos=4, pad=4, xp=torch)
    with torch.no_grad():
        p = space.log_prob(best).exp().numpy()
    y = best.sample((3000,))
    index = space.index(y)
    got = matches(y, prompts).numpy()
    for c in range(2):
        level = matches(space._for_contexts((2,)), prompts)[:, c].numpy().astype(int)
        expected = np.bincount(level, weights=p[:, c])
        seen = np.bincount(got[:, c].astype(int), minlength=len(expected))
        assert chisquare(seen, 3000 * expected / expected.sum()).pvalue > 1e-6
        common = np.flatnonzero(3000 * p[:, c] > 10)
        seen = np.bincount(index[:, c], minlength=len(p))
        z = (seen - 3000 * p[:, c])[common] / np.sqrt(3000 * p[common, c])
        assert np.abs(z).max() < 5


def test_a_site_of_a_program_is_a_target(lm):
    """BestOfN at a sample site is the prior of the program, with a factor on top."""
    prompts = [[1, 2], [3]]

    def program(prompts):
        y = pyro.sample("y", BestOfN(lm(prompts), matches, 4, contexts=(prompts,)))
        pyro.factor("short", -0.5 * (y != 4).sum(-1))

    declared, space = target(program), Space.sequences(5, 3, eos=4, pad=4, xp=torch)
    cdf = exact.reward_cdf(lm(prompts), matches, prompts)
    combined = best_of_n(lm, matches, 4, cdf)
    with torch.no_grad():
        log_prior = space.log_density(declared, prompts) - space.log_potential(declared, prompts)
        wanted = space.log_density(combined, prompts)
        torch.testing.assert_close(log_prior, wanted, rtol=1e-5, atol=1e-5)
        some = best_of_n(lm, matches, 4, cdf.for_contexts(prompts))
        picked = space.log_density(some, prompts[1:])
    torch.testing.assert_close(picked[:, 0], wanted[:, 1], rtol=1e-5, atol=1e-5)
    assert some.log_z is None or float(some.log_z) == 0.0
    with pyro.plate("copies", 7, dim=-2):
        y = pyro.sample("y", BestOfN(lm(prompts), matches, 2, contexts=(prompts,)))
    assert y.shape == (7, 2, 3)


def test_an_estimated_cdf_reaches_the_diagnostics():
    """assess widens its intervals by the error of the potential, and says so."""
    normal, identity = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0), lambda y: y
    with pytest.raises(ValueError, match="outcomes of Normal cannot be listed; pass cdf="):
        BestOfN(normal, identity, 3).log_prob(torch.tensor(0.3))
    samples = np.random.default_rng(0).normal(size=400)
    estimated = best_of_n(normal, identity, 3, RewardCdf.estimate(samples))
    known = best_of_n(normal, identity, 3, RewardCdf.continuous(normal.cdf))
    trees = [assess(lambda: normal, t, n=2000) for t in (estimated, known)]
    wide, narrow = (diagnostics.estimates(t)["log_z"] for t in trees)
    assert wide.se > 1.5 * narrow.se
    assert wide.low < 0.0 < wide.high
    assert "potential is estimated" in trees[0]["diagnostics"].attrs["notes"]
    assert "potential is estimated" not in trees[1]["diagnostics"].attrs["notes"]


def test_it_is_the_base_where_it_should_be():
    """n = 1, shapes, the support, and enumeration pass through; wrong arguments are refused."""
    one = BestOfN(BASE, reward, 1)
    torch.testing.assert_close(one.log_prob(ALL), BASE.log_prob(ALL))
    assert one.has_enumerate_support
    assert one.enumerate_support(expand=False).tolist() == [[0], [1], [2], [3]]
    assert (one.batch_shape, one.event_shape) == ((2,), ())
    wide = BestOfN(BASE, reward, 2).expand([5, 2])
    assert wide.sample((3,)).shape == wide.log_prob(wide.sample((3,))).shape == (3, 5, 2)
    for n in (0, 2.5):
        with pytest.raises(ValueError, match=f"whole n >= 1, got {n}"):
            BestOfN(BASE, reward, n)
    with pytest.raises(ValueError, match="temperature must be positive"):
        BestOfN(BASE, reward, 2, temperature=0.0)
    tokens = BASE.expand([3, 2]).to_event(1)
    with pytest.raises(ValueError, match="one number an outcome"):
        BestOfN(tokens, lambda y: 1.0 * y, 2).sample()


@pytest.mark.parametrize(("rewards", "cdf_tolerance"), [((0.6, 0.6 + 2**-53), None), ((0, 1), 2)])
def test_draws_tie_as_the_density_says(rewards, cdf_tolerance):
    """Sums in two orders by default, and what a given cdf's tolerance makes one level."""
    torch.manual_seed(2)
    half, values = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor(rewards).double()
    cdf = RewardCdf.exact(values, half.log(), tolerance=cdf_tolerance)
    best = BestOfN(dist.Categorical(half), lambda y: values[y], 4, cdf)
    np.testing.assert_allclose(best.log_prob(torch.arange(2)).exp(), 0.5, rtol=1e-12)
    for one in (best, best.expand([3])):
        drawn = one.sample((4000,)).double()
        assert float((drawn.mean() - 0.5).abs()) < 5 * 0.5 / math.sqrt(drawn.numel())


def test_rewards_in_half_precision_are_the_numbers_stored():
    """Scores 8 and 8.0625 of a bfloat16 reward model, one unit apart, are two levels."""
    scores = torch.tensor([8.0, 8.0625], dtype=torch.bfloat16)
    best = BestOfN(dist.Categorical(torch.full((2,), 0.5)), lambda y: scores[y], 4)
    np.testing.assert_allclose(best.log_prob(torch.arange(2)).exp(), [1 / 16, 15 / 16], rtol=1e-5)
    assert abs(float(best.sample((2000,)).double().mean()) - 15 / 16) < 5 * 0.25 / math.sqrt(2000)
