"""The samplers on language models and Pyro programs in torch, against the exact laws."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm

from infer_align import condition, indicator, tilt
from infer_align.samplers import (
    best_of_n,
    importance,
    independence_metropolis,
    local_metropolis,
    quasi_rejection,
    rejection,
    sampling_importance_resampling,
)
from infer_align.torch import mixture, source
from infer_align.torch import target as as_target
from tests.lm_zoo import PROMPTS, all_outcomes, tiny_lm
from tests.sources import INF, TableSource, chi_square_p

MODEL = Path(__file__).resolve().parents[2] / "models" / "tiny_gpt2.py"


@functools.cache
def tiny_gpt2():
    """The catalogue's language model, its program, and the table of its 341 outcomes."""
    spec = importlib.util.spec_from_file_location("sampled_tiny_gpt2", MODEL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lm = module.model()
    program, y = module.target(lm), all_outcomes()
    with torch.no_grad():
        log_q, log_p = lm().log_prob(y).numpy(), as_target(program).log_density(y).numpy()
    return lm, program, TableSource(y.numpy(), log_q, log_p)


METHODS = {
    "rejection": lambda s, w: rejection(s, 150, w.max()),
    "quasi_rejection": lambda s, w: quasi_rejection(s, 300, w.max() - 1.5),
    "resampling": lambda s, w: sampling_importance_resampling(s, 150, 20_000),
    "independence": lambda s, w: independence_metropolis(s, 150, 150),
    "local": lambda s, w: local_metropolis(s, 400, 25),
}
QUICK = {"local", "resampling"}


@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=() if h in QUICK else pytest.mark.slow) for h in METHODS]
)
def test_samplers_on_a_language_model(how):
    """χ² against all 341 outcomes, and log Z."""
    _, program, table = tiny_gpt2()
    weights = (table.log_p - table.log_q)[table.log_q > -INF]
    sample = METHODS[how](source(program, seed=3), weights)
    assert isinstance(sample.outcomes, torch.Tensor)
    np.testing.assert_allclose(sample.log_target, table.log_target(sample.outcomes), rtol=1e-9)
    index = table.index(sample.outcomes)
    law = table.p
    if how == "quasi_rejection":
        law = np.exp(np.minimum(table.log_p, weights.max() - 1.5 + table.log_q))
        law /= law.sum()
    assert chi_square_p(np.bincount(index, minlength=len(law)), law) > 1e-5
    v = np.exp(sample.evidence - table.log_z)
    assert abs(v.mean() - 1) < 5 * v.std() / np.sqrt(len(v))


def test_a_language_model_is_drawn_in_one_pass():
    """The prior of a program draws with its log-probabilities, and is not scored again."""
    lm = tiny_lm()
    calls = []

    def program(prompts):
        y = pyro.sample("y", lm(prompts))
        calls.append(tuple(y.shape))
        pyro.factor("long", 0.5 * lm.lengths(y).double())

    s = source(program, prompts=PROMPTS, seed=5)
    assert s.shape == (3,)
    s.draw(2)  # the potential is compared with single outcomes once
    counts, calls[:] = lm.counts.copy(), []
    drawn = s.draw(300)
    after = lm.counts
    assert after["sampled_rows"] - counts["sampled_rows"] == 900
    assert after["scored_rows"] == counts["scored_rows"]
    assert calls == [(256, 3, 4), (44, 3, 4)]
    assert tuple(drawn.outcomes.shape) == (300, 3, 4)
    np.testing.assert_allclose(s.log_proposal(drawn.outcomes), drawn.log_proposal, rtol=1e-9)
    np.testing.assert_allclose(s.log_target(drawn.outcomes), drawn.log_target, rtol=1e-9)
    lengths = lm.lengths(drawn.outcomes).numpy()
    np.testing.assert_allclose(drawn.log_target - drawn.log_proposal, 0.5 * lengths)
    assert not drawn.outcomes.requires_grad


def test_prompts_constraints_and_reproduction():
    """A hard constraint by rejection and by local moves, each prompt its own law and Z."""
    lm, y = tiny_lm(), all_outcomes()
    target = condition(lm, lambda y, prompts: (y == 3).any(-1))
    with torch.no_grad():
        log_q = lm(PROMPTS).log_prob(y[:, None].expand(-1, 3, -1)).numpy()
    accepted = (y == 3).any(-1).numpy()[:, None]
    table = TableSource(y.numpy(), log_q, np.where(accepted, log_q, -INF))
    make = lambda seed: source(target, prompts=PROMPTS, seed=seed)
    for sample in (rejection(make(1), 150), local_metropolis(make(1), 150, 4)):
        for c in range(3):
            counts = np.bincount(table.index(sample.outcomes)[:, c], minlength=len(table.p))
            assert chi_square_p(counts, table.p[:, c]) > 1e-5
        v = np.exp(sample.evidence - table.log_z)
        assert np.all(np.abs(v.mean(axis=0) - 1) < 5 * v.std(axis=0) / np.sqrt(len(v)))
    state = torch.get_rng_state()
    first, again, other = (rejection(make(seed), 20) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.outcomes, again.outcomes)
    np.testing.assert_array_equal(first.evidence, again.evidence)
    assert not torch.equal(first.outcomes, other.outcomes)


def test_policies_and_mixtures_as_proposals():
    """A fitted model, or its mixture with the prior: weights are P/q, log Z unbiased."""
    lm, other, y = tiny_lm(), tiny_lm(seed=1), all_outcomes()
    target = tilt(lm, lambda y, prompts: 1.0 * (y == 3).sum(-1), beta=1.0)
    with torch.no_grad():
        p = target.log_density(y[:, None].expand(-1, 3, -1), PROMPTS).exp().sum(0).numpy()
    both = mixture([other, lm], [0.5, 0.5])
    for proposal in (other, both, both(PROMPTS)):
        s = source(target, proposal, prompts=PROMPTS, seed=2)
        listed = y[:, None].expand(-1, 3, -1)
        np.testing.assert_allclose(np.exp(s.log_proposal(listed)).sum(axis=0), 1)
        sample = importance(s, 600)
        v = np.exp(sample.evidence)
        if proposal is not other:  # whose weights are too heavy-tailed to be averaged
            assert np.all(np.abs(v.mean(axis=0) - p) < 5 * v.std(axis=0) / np.sqrt(600))
        np.testing.assert_allclose(
            sample.evidence, sample.log_target - s.log_proposal(sample.outcomes), atol=1e-9
        )
    counts = np.bincount(TableSource(y.numpy(), np.zeros(341), np.zeros(341)).index(
        s.draw(1000).outcomes)[:, 1], minlength=341)  # fmt: skip
    assert chi_square_p(counts, np.exp(s.log_proposal(listed))[:, 1]) > 1e-5
    assert s.tokens().vocabulary_size == 5


def test_programs_of_several_sites():
    """Dicts of sites go through drawing, choosing and scoring."""

    def program():
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        x = pyro.sample("x", dist.Normal(k.double(), 1.0))
        pyro.factor("positive", indicator(x + k > 0))

    s = source(program, seed=4)
    sample = rejection(s, 800)
    assert [tuple(sample.outcomes[site].shape) for site in ("k", "x")] == [(800,), (800,)]
    assert bool((sample.outcomes["x"] + sample.outcomes["k"] > 0).all())
    np.testing.assert_allclose(s.log_target(sample.outcomes), sample.log_target)
    z = np.array([0.5, 0.3, 0.2]) @ norm.cdf([0.0, 2.0, 4.0])
    v = np.exp(sample.evidence)
    assert abs(v.mean() - z) < 5 * v.std() / np.sqrt(len(v))


def test_best_of_n_rewards_see_tensors():
    """The reward gets outcomes in the model's library."""
    lm, _, table = tiny_gpt2()
    s = source(tilt(lm, lambda y, prompts=None: 0.0 * y.sum(-1), beta=1.0), seed=1)
    count = lambda y: (y == 2).sum(-1)
    sample = best_of_n(s, count, 4, 500)
    r = (table.outcomes == 2).sum(-1)
    upto, below = (
        (table.q * compare(r, r[:, None])).sum(-1) for compare in (np.less_equal, np.less)
    )
    law = table.q * (upto**4 - below**4) / (upto - below)
    counts = np.bincount(table.index(sample.outcomes), minlength=341)
    assert chi_square_p(counts, law) > 1e-5


def test_what_does_not_fit_is_refused():
    """Mixture weights, other contexts, proposals that are none, potentials for each token."""
    lm = tiny_lm()
    target = tilt(lm, lambda y, prompts: 1.0 * (y == 1).sum(-1), beta=1.0)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="as many positive weights"):
            mixture([lm, lm], weights)
    with pytest.raises(ValueError, match="the same contexts"):
        source(target, lm(PROMPTS[:2]), prompts=PROMPTS)
    with pytest.raises(ValueError, match="contexts"):
        mixture([lm(PROMPTS[:2]), lm], [1.0, 1.0])(PROMPTS)
    with pytest.raises(TypeError, match="a callable from prompts"):
        source(target, 3, prompts=PROMPTS)
    per_token = source(tilt(lm, lambda y, prompts: 1.0 * y, beta=1.0), prompts=PROMPTS)
    with pytest.raises(ValueError, match=r"sum over them with \.sum\(-1\)"):
        per_token.draw(2)
    with pytest.raises(ValueError, match="at least 1"):
        per_token.draw(0)


def test_a_seed_for_a_target_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # our own words, as users
    program = lambda: pyro.sample("y", dist.Categorical(torch.ones(2)))
    with pytest.raises(TypeError, match=r"a target is a Pyro program .* or a Target, got 0"):
        source(0, program)
