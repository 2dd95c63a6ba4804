"""Token streams of language models: one token at a time is the whole sequence at once."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from infer_align import exact, tilt
from infer_align.samplers import local_metropolis, next_twist, prefix_twist, smc
from infer_align.torch import mixture, source
from infer_align.torch.token_streams import token_stream
from infer_align.torch.twists import fit_twist, head_twist
from tests import lm_zoo
from tests.sources import ExactTwist, TableSource, chi_square_p

N = 5


def walk(lm, *, seed=0):
    """Random tokens and ancestors of the zoo's prompts, of unequal lengths."""
    rng = np.random.default_rng(seed)
    continuations = lm(lm_zoo.PROMPTS)
    stream = token_stream(continuations, hidden=True)
    shape = (N, len(lm_zoo.PROMPTS))
    log_probs, tokens, parts = stream.start(N), np.zeros((*shape, 0), dtype=int), []
    per_token = np.zeros((*shape, 0))
    for t in range(stream.length):
        assert tuple(log_probs.shape) == (*shape, stream.vocabulary_size)
        assert torch.allclose(log_probs.exp().sum(-1), torch.ones(()).to(log_probs), atol=1e-5)
        token = rng.integers(0, stream.vocabulary_size - (t < 3), shape)  # ends at the last only
        picked = np.take_along_axis(log_probs.numpy(), token[..., None], axis=-1)
        tokens = np.concatenate([tokens, token[..., None]], axis=-1)
        per_token = np.concatenate([per_token, picked], axis=-1)
        parts.append(stream.hidden)
        if t + 1 == stream.length:
            break
        ancestors = rng.integers(0, N, shape) if t != 1 else None
        if ancestors is not None:
            tokens, per_token = (
                np.take_along_axis(x, ancestors[..., None], axis=0) for x in (tokens, per_token)
            )
        log_probs = stream.advance(torch.as_tensor(tokens[..., -1]), ancestors)
    return continuations, tokens, per_token, parts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", lm_zoo.FAMILIES)
def test_steps_are_the_scores_of_each_token(family, dtype):
    lm = lm_zoo.tiny_lm(family, dtype=dtype)
    continuations, tokens, per_token, hidden = walk(lm)
    scored = continuations.log_prob_per_token(torch.as_tensor(tokens)).numpy()
    assert np.abs(scored - per_token).max() < (1e-4 if dtype == torch.float32 else 1e-10)
    assert all(tuple(h.shape) == (N, 3, 16) for h in hidden)


def test_a_trained_policy_streams_with_its_adapter():
    lm = lm_zoo.tiny_lm()
    policy = lm.trainable(lora=2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    rows = {}
    for name, model in (("policy", policy), ("prior", lm)):
        continuations, tokens, per_token, _ = walk(model)
        scored = continuations.log_prob_per_token(torch.as_tensor(tokens)).detach().numpy()
        assert np.abs(scored - per_token).max() < 1e-10
        rows[name] = per_token
    assert np.abs(rows["policy"] - rows["prior"]).max() > 0.01


def reward(y):
    return 1.5 * (y[..., :-1] == 3).double().sum(-1) - 1.0 * (y == 1).double().sum(-1)


def exact_log_z(target):
    """Of each of the zoo's prompts, by listing."""
    y = lm_zoo.all_outcomes()[:, None].expand(-1, *target.given().batch_shape, -1)
    return target.log_density(y).logsumexp(0).numpy()


def policy_and_prior():
    """A policy with an adapter on the prior's own network, and the mixture of both."""
    lm = lm_zoo.tiny_lm()
    policy = lm.trainable(lora=2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3)
    return lm, mixture([policy, lm], [0.6, 0.4])


def test_a_mixture_of_policy_and_prior_streams_all_its_outcomes():
    """Each component with its own cache: the steps are the mixture's log-probability."""
    _, both = policy_and_prior()
    both, y = both(lm_zoo.PROMPTS), lm_zoo.all_outcomes()[:, None].expand(-1, 3, -1)
    stream = token_stream(both, (3,))
    laws, total, alive = stream.start(len(y)), 0.0, torch.ones(y.shape[:2], dtype=bool)
    for t in range(stream.length):
        picked = laws.gather(-1, y[..., t : t + 1])[..., 0]
        total, alive = total + torch.where(alive, picked, 0.0), alive & (y[..., t] != lm_zoo.EOS)
        laws = stream.advance(y[..., t]) if t + 1 < stream.length else laws
    with torch.no_grad():
        np.testing.assert_allclose(total, both.log_prob(y), rtol=1e-9)
    np.testing.assert_allclose(total.exp().sum(0), 1.0)


def test_a_mixture_follows_the_resampling():
    """After it every row goes on from the weights and the caches of its ancestor."""
    _, both = policy_and_prior()
    stream, rng = token_stream(both(lm_zoo.PROMPTS)), np.random.default_rng(0)
    tokens, ancestors = torch.as_tensor(rng.integers(0, 4, (2, N, 3))), rng.integers(0, N, (N, 3))
    stream.start(N)
    stream.advance(tokens[0])
    got = stream.advance(tokens[1], ancestors)
    stream.start(N)
    stream.advance(tokens[0].gather(0, torch.as_tensor(ancestors)))
    np.testing.assert_allclose(got, stream.advance(tokens[1]), rtol=1e-9)


def test_samplers_over_a_mixture_have_the_target():
    """The mean of Ẑ over contexts that are alike; χ² of a filter with an exact twist, and of local
    moves."""
    lm, both = policy_and_prior()
    target, y = tilt(lm, lambda y, prompts: reward(y), 1.0), lm_zoo.all_outcomes()
    one = source(target, both, prompts=lm_zoo.PROMPTS[:1], seed=1)
    log_q, log_p = (f(y[:, None]) for f in (one.log_proposal, one.log_target))
    eos = (lm_zoo.EOS,)
    table = TableSource(y.numpy(), log_q, log_p, vocabulary=lm_zoo.VOCAB, eos=eos, pad=eos[0])
    filtered = smc(one, 1500, twist=ExactTwist(table))
    np.testing.assert_allclose(filtered.log_weights, table.log_z[0], atol=1e-9)
    for sample in (filtered, local_metropolis(one, 300, 40)):
        counts = np.bincount(table.index(sample.outcomes)[:, 0], minlength=len(table.p))
        assert chi_square_p(counts, table.p[:, 0]) > 1e-5
    many = source(target, both, prompts=lm_zoo.PROMPTS[:1] * 600, seed=2)
    guess = prefix_twist(lambda prefix: 1.0 * (prefix == 3).sum(-1))
    z = np.exp(smc(many, 5, twist=guess, ess_threshold=0.9).log_z)
    assert abs(z.mean() - np.exp(table.log_z[0])) < 5 * z.std() / np.sqrt(600)


def test_a_filter_over_a_language_model_finds_its_target():
    lm = lm_zoo.tiny_lm()
    prompts = lm(lm_zoo.PROMPTS)
    target = tilt(prompts, reward, 1.0)
    log_z = exact_log_z(target)
    letters = torch.tensor([0.0, -1.0, 0.0, 1.5, 0.0], dtype=torch.float64)

    def ahead(prefix):
        past = letters[prefix].sum(-1) if prefix.shape[-1] else torch.zeros(prefix.shape[:2])
        return past[..., None].double() + letters

    plain = smc(source(target, seed=1), 500)
    twisted = smc(source(target, seed=1), 500, twist=next_twist(ahead))
    for sample in (plain, twisted):
        assert sample.log_weights.shape == (500, 3)
        assert isinstance(sample.outcomes, torch.Tensor)
        assert np.allclose(sample.log_z, log_z, atol=0.35)
        again = target.log_density(sample.outcomes).numpy()
        assert np.allclose(sample.log_target, again, atol=1e-9)
    ess = [1 / (s.probabilities**2).sum(axis=0) for s in (plain, twisted)]
    assert np.all(ess[1] > ess[0])


def test_an_exact_twist_leaves_no_variance():
    target = tilt(lm_zoo.tiny_lm()(lm_zoo.PROMPTS), reward, 1.0)
    sample = smc(source(target), 40, twist=exact.lookahead(target))
    assert np.abs(sample.log_weights - exact_log_z(target)).max() < 1e-9


def test_a_learnt_head_raises_the_ess():
    torch.set_num_threads(1)
    lm = lm_zoo.tiny_lm()
    prompts = lm(lm_zoo.PROMPTS[:1])
    target = tilt(prompts, reward, 1.0)
    stream = token_stream(prompts, hidden=True)
    twist = head_twist(stream)
    optimizer = torch.optim.Adam(twist.head.parameters(), lr=0.02)
    steps = list(fit_twist(source(target), twist, n=96, steps=50, optimizer=optimizer))
    ess = [step.metrics["ess"] for step in steps]
    assert np.mean(ess[-5:]) > np.mean(ess[:2]) + 0.2
    log_z = float(exact_log_z(target)[0])
    assert abs(np.mean([step.metrics["log_z"] for step in steps[-10:]]) - log_z) < 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="continuations of a CausalLM"):
        token_stream(dist.Categorical(torch.ones(3)))
    lm = lm_zoo.tiny_lm()
    with pytest.raises(ValueError, match="the same prompts"):
        token_stream(lm(lm_zoo.PROMPTS), (2,))
    shorter = lm_zoo.tiny_lm(max_new_tokens=3)
    with pytest.raises(ValueError, match=r"the same length; component 0 has 4 and component 1 has"):
        source(tilt(lm, lambda y: reward(y), 1.0), mixture([lm(), shorter()], [1.0, 1.0])).tokens()
    with pytest.raises(ValueError, match="hidden states of one model"):
        token_stream(mixture([lm, lm], [1.0, 1.0])(lm_zoo.PROMPTS), hidden=True)
    prompts = lm([[1]])
    twist = head_twist(token_stream(prompts))
    with pytest.raises(ValueError, match="hidden=True"):
        smc(source(tilt(prompts, reward, 1.0)), 4, twist=twist)
