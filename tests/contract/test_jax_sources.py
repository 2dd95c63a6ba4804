"""The samplers on JAX targets: programs and catalogue models, against the exact laws."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from infer_align import condition, exact, tilt
from infer_align.jax import markov, memoryless, mixture, source, tabular
from infer_align.jax import target as as_target
from infer_align.samplers import (
    importance,
    independence_metropolis,
    local_metropolis,
    next_twist,
    quasi_rejection,
    rejection,
    sampling_importance_resampling,
    smc,
)
from tests.sources import INF, TableSource, chi_square_p

MODELS = Path(__file__).resolve().parents[2] / "models"


@functools.cache
def model(name):
    """A catalogue model and its table of outcomes."""
    spec = importlib.util.spec_from_file_location(f"sampled_{name}", MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target, y = as_target(module.target()), module.space().outcomes
    log_q, log_p = jax.jit(lambda y: (target.given().log_prob(y), target.log_density(y)))(y)
    return target, TableSource(np.asarray(y), np.asarray(log_q), np.asarray(log_p))


def levels(p, count=20):
    """Outcomes in groups of about equal mass, by their probability."""
    order = np.argsort(p)
    group = np.empty(len(p), dtype=int)
    group[order] = np.minimum((p[order].cumsum() * count).astype(int), count - 1)
    return group


def check(sample, table):
    """χ² of the outcomes, and of groups of outcomes that are alike in probability."""
    assert np.all(sample.log_weights == 0)
    np.testing.assert_allclose(sample.log_target, table.log_target(sample.outcomes))
    counts = np.bincount(table.index(sample.outcomes), minlength=len(table.p))
    assert chi_square_p(counts, table.p) > 1e-5
    group = levels(table.p)
    assert chi_square_p(np.bincount(group, counts), np.bincount(group, table.p)) > 1e-5
    check_evidence(sample, table)


def check_evidence(sample, table):
    """The mean of Ẑ/Z is one; of equal weights to rounding."""
    v = np.exp(sample.evidence - table.log_z)
    assert abs(v.mean() - 1) <= 5 * v.std() / np.sqrt(len(v)) + 1e-8


def check_weighted(sample, table):
    """The weighted share of each group of outcomes, of independent draws."""
    group, w = levels(table.p), np.exp(sample.log_weights - sample.log_weights.max())
    if np.all(w == 1):  # a χ² says more
        return
    drawn, checked = group[table.index(sample.outcomes)], 0
    for k, share in enumerate(np.bincount(group, table.p)):
        if np.sum((drawn == k) & (w > 0)) >= 30:  # else its spread is not known
            excess, checked = w * ((drawn == k) - share), checked + 1
            assert abs(excess.mean()) <= 5 * excess.std() / np.sqrt(len(w))
    assert checked >= 2


def log_bound(table):
    return (table.log_p - table.log_q)[table.log_q > -INF].max()


def by_rejection(s, table, n, most):
    return rejection(s, n, log_bound(table), max_calls=most)


def by_smc(s, table, n, most):
    """With the exact look-ahead functions: all weights are Z, so the outcomes are draws of p."""
    sample = smc(s, n, twist=exact.lookahead(s.target))
    np.testing.assert_allclose(sample.log_weights, table.log_z, atol=1e-8)
    return sample._replace(log_weights=np.zeros(n))


METHODS = {
    "rejection": by_rejection,
    "resampling": lambda s, table, n, most: sampling_importance_resampling(s, n, most),
    "independence": lambda s, table, n, most: independence_metropolis(s, n, most // n),
    "local": lambda s, table, n, most: local_metropolis(
        s, n, 60, vocabulary_size=6, max_calls=most
    ) if table.outcomes.ndim == 1 else local_metropolis(s, n, 60, max_calls=most),
    "smc": by_smc,
}  # fmt: skip
SIZES = {  # outcomes, and most proposals
    "asymmetric_bandit": (3000, 200_000),
    "markov_bigram": (2000, 600_000),
    "memoryless_ternary": (400, 2_000_000),
    "two_peaks": (2000, 2_000_000),
    "rare_constraint": (60, 5_000_000),
    "gdc_moments": (1500, 600_000),
    "ensemble_reward": (2000, 600_000),
    "preference_game": (3000, 200_000),
    "regex_automaton": (800, 600_000),
}
NO_TOKENS = {"asymmetric_bandit", "preference_game"}
QUICK = {
    ("asymmetric_bandit", "rejection"),
    ("asymmetric_bandit", "independence"),
    ("ensemble_reward", "smc"),
}
PAIRS = [
    pytest.param(name, how, marks=() if (name, how) in QUICK else pytest.mark.slow)
    for name in SIZES
    for how in METHODS
    if how != "smc" or name not in NO_TOKENS
]


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_catalogue_models(name, how):
    """Each sampler on each model that can be listed has the model's exact law."""
    target, table = model(name)
    n, most = SIZES[name]
    check(METHODS[how](source(jax.random.key(1), target), table, n, most), table)


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=() if k in NO_TOKENS else pytest.mark.slow) for k in SIZES]
)
def test_quasi_rejection_of_catalogue_models(name):
    """Its outcomes have law min(P, βq), and with their weights the model's."""
    target, table = model(name)
    n, most = SIZES[name]
    log_beta = log_bound(table) - 0.7
    sample = quasi_rejection(source(jax.random.key(6), target), n, log_beta, max_calls=most)
    law = np.exp(np.minimum(table.log_p, log_beta + table.log_q) - table.log_z)
    counts = np.bincount(table.index(sample.outcomes), minlength=len(law))
    assert chi_square_p(counts, law) > 1e-5
    assert chi_square_p(np.bincount(levels(law / law.sum()), counts),
                        np.bincount(levels(law / law.sum()), law)) > 1e-5  # fmt: skip
    ratio = sample.log_target - table.log_proposal(sample.outcomes)
    np.testing.assert_allclose(sample.log_weights, np.maximum(ratio - log_beta, 0.0), atol=1e-9)
    check_weighted(sample, table)
    check_evidence(sample, table)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SIZES.keys() - NO_TOKENS))
def test_filters_of_catalogue_models_are_unbiased(name):
    """Without a twist, and resampled by one that says too little: Ẑ, and the mass on groups."""
    target, table = model(name)
    s = source(jax.random.key(7), target)
    if name not in {"rare_constraint", "regex_automaton"}:  # which a draw seldom meets
        plain = smc(s, 4000)
        check_weighted(plain, table)
        check_evidence(plain, table)
    ahead, group, mass = exact.lookahead(s.target), levels(table.p), []
    twist = next_twist(lambda prefix: 0.6 * ahead.next_log_psi(prefix))
    for _ in range(30):
        sample = smc(s, 100, twist=twist, ess_threshold=0.95)
        w = np.exp(sample.log_weights - table.log_z) / 100
        mass.append(np.bincount(group[table.index(sample.outcomes)], w, minlength=20))
    mass, share = np.array(mass), np.bincount(group, table.p, minlength=20)
    mass, share = np.c_[mass.sum(axis=1), mass], np.r_[1.0, share]
    error = mass.std(axis=0, ddof=1) / np.sqrt(len(mass))
    seen = (mass > 0).sum(axis=0) >= 15  # else its spread is not known
    assert seen.sum() >= 5
    assert np.all(np.abs(mass.mean(axis=0) - share)[seen] <= 5 * error[seen])


def conditional(x):
    """Two latent sites and a context, some outcomes rejected."""
    k = numpyro.sample("k", dist.Categorical(logits=x * jnp.arange(3.0)))
    b = numpyro.sample("b", dist.Bernoulli(0.3 + 0.2 * k))
    numpyro.factor("reward", jnp.where(k + b < 1, -jnp.inf, 0.5 * b))


def test_programs_of_several_sites_and_contexts():
    """Outcomes are dicts, contexts the trailing axis."""
    x = jnp.array([-0.5, 1.0])
    s = source(jax.random.key(2), conditional, contexts=(x,))
    assert s.shape == (2,)
    sample = rejection(s, 2000, 0.5)
    assert sorted(sample.outcomes) == ["b", "k"]
    for y in sample.outcomes.values():
        assert isinstance(y, jax.Array)
        assert y.shape == (2000, 2)
    np.testing.assert_allclose(s.log_target(sample.outcomes), sample.log_target)
    cells = {"k": np.repeat(np.arange(3), 2)[:, None] + np.zeros((6, 2), int),
             "b": np.tile(np.arange(2), 3)[:, None] + np.zeros((6, 2), int)}  # fmt: skip
    p = np.exp(s.log_target(cells))
    code = np.asarray(2 * sample.outcomes["k"] + sample.outcomes["b"])
    for c in range(2):
        assert chi_square_p(np.bincount(code[:, c], minlength=6), p[:, c] / p[:, c].sum()) > 1e-5
    np.testing.assert_allclose(np.exp(s.log_proposal(cells)).sum(axis=0), 1)
    assert independence_metropolis(s, 2000, 10).outcomes["b"].shape == (2000, 2)


def test_sizes_are_compiled_in_few_buckets():
    """Draws of n and of n + 1 run the same code; every draw is fresh, and given by the key."""
    traces = []

    def potential(y):
        traces.append(y.shape)
        return 1.0 * y

    target = tilt(dist.CategoricalProbs(jnp.ones(3) / 3), potential, beta=1.0)
    s, same = (source(jax.random.key(0), target) for _ in range(2))
    shapes = [s.draw(n).log_target.shape for n in (1, 5, 16, 17, 30)]
    assert shapes == [(1,), (5,), (16,), (17,), (30,)]
    assert len(traces) <= 3  # 16, 64, and nothing else
    twin = rejection(same, 50, 2.0)
    for seed, x in ((0, True), (1, False)):
        y = rejection(source(jax.random.key(seed), target), 50, 2.0)
        assert np.array_equal(twin.outcomes, y.outcomes) is x
        assert np.array_equal(twin.evidence, y.evidence) is x
    big = s.draw(9000)
    assert big.outcomes.shape == big.log_proposal.shape == (9000,)
    assert np.any(np.asarray(s.draw(30).outcomes != s.draw(30).outcomes))
    np.testing.assert_array_equal(s.log_target(big.outcomes), big.log_target)
    assert s.log_proposal(big.outcomes[:5]).dtype == np.float64
    with pytest.raises(ValueError, match="at least 1"):
        s.draw(0)


@pytest.mark.slow
def test_proposals():
    """A fitted policy, or a mixture of it with the prior, in place of the prior."""
    prior = memoryless(jnp.log(jnp.array([0.5, 0.3, 0.2])), length=3)
    target = condition(prior, lambda y: (y == 2).sum(-1) >= 2)
    y = np.array(list(np.ndindex(3, 3, 3)))
    policy = memoryless(jnp.log(jnp.array([0.1, 0.2, 0.7])), length=3)
    both = mixture([policy, prior], [0.9, 0.1])
    exact = np.exp(np.asarray(target.log_density(jnp.asarray(y)), dtype=float)).sum()
    for proposal in (policy, both):
        s = source(jax.random.key(4), target, proposal)
        np.testing.assert_allclose(np.exp(s.log_proposal(y)).sum(), 1)
        v = np.exp(importance(s, 4000).evidence)
        assert abs(v.mean() - exact) < 5 * v.std() / np.sqrt(4000)
    counts = np.zeros(27)
    np.add.at(counts, np.asarray(s.draw(4000).outcomes) @ np.array([9, 3, 1]), 1)
    assert chi_square_p(counts, np.exp(s.log_proposal(y))) > 1e-5
    assert s.tokens().vocabulary_size == 3


def test_mixtures_refuse_what_does_not_fit():
    """Weights and batch shapes."""
    d = dist.BernoulliProbs(0.2)
    for weights in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, jnp.inf]):
        with pytest.raises(ValueError, match="as many positive weights"):
            mixture([d, d], weights)
    with pytest.raises(ValueError, match="the same contexts"):
        mixture([d, dist.BernoulliProbs(jnp.array([0.2, 0.3]))], [1.0, 1.0])
    with pytest.raises(TypeError, match="a callable from contexts"):
        source(jax.random.key(0), tilt(d, lambda y: y, beta=1.0), 3)


def test_shapes_that_do_not_fit_are_refused():
    """A potential for each token, and a proposal with other contexts."""
    letters = memoryless(jnp.zeros(3), length=2)
    per_token = source(jax.random.key(0), tilt(letters, lambda y: 1.0 * y, beta=1.0))
    with pytest.raises(ValueError, match=r"sum over them with \.sum\(-1\)"):
        importance(per_token, 4)
    target = tilt(dist.CategoricalProbs(jnp.ones(3) / 3), lambda y: 1.0 * y, beta=1.0)
    with pytest.raises(ValueError, match="the same contexts"):
        source(jax.random.key(0), target, tabular(jnp.zeros((2, 3))))


@pytest.mark.slow
def test_local_metropolis_of_sequences_that_end():
    """The token stream of a Markov prior with an EOS, in two contexts."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))
    params = {"initial": jnp.stack([logits[0], logits[1]]), "transition": jnp.stack([logits] * 2)}
    prior = markov(params, length=3, eos=2, pad=0)
    target = tilt(prior, lambda y: 1.0 * (y == 1).sum(-1), beta=0.7)
    y = prior.enumerate_support(expand=True)
    log_p = np.asarray(target.log_density(y))
    table = TableSource(np.asarray(y[:, 0]), log_p, log_p)
    sample = local_metropolis(source(jax.random.key(5), target), 2000, 30)
    for c in range(2):
        counts = np.bincount(table.index(sample.outcomes)[:, c], minlength=len(table.p))
        assert chi_square_p(counts, table.p[:, c]) > 1e-5
