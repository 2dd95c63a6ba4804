"""Best-of-n and its relatives as targets: exact identities, estimated cdfs and their errors."""

import inspect
import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from infer_align import (
    RewardCdf,
    Target,
    best_of_n,
    quantile,
    quantile_tilt,
    soft_best_of_n,
    threshold,
    tilt,
    top_fraction,
)
from infer_align.diagnostics import assess
from infer_align.diagnostics._draws import draws
from infer_align.diagnostics._potential_error import potential_errors
from infer_align.diagnostics._summary import summarise
from infer_align.divergences import forward_kl, jensen_shannon, reverse_kl, total_variation
from infer_align.estimators import LogWeights
from infer_align.exact import RewardLaw, log_rewards, reward_law, selection
from tests.libraries import jax, jnp, torch


def no_base():
    """Of targets of which only the potential is asked."""
    raise AssertionError


P = np.array([0.1, 0.4, 0.3, 0.2])
R = np.array([1.0, 0.5, 1.0, -2.0])
LAWS = {
    "ties": RewardLaw.of_outcomes(R.tolist(), np.log(P)),
    "lattice": reward_law([0.5, 0.3, 0.2], ["-0.5", "0", "0.25"], 40),
    "log-likelihoods": reward_law([0.4, 0.3, 0.2, 0.1], log_rewards([0.1, 0.2, 0.4, 0.3]), 6),
    "long": reward_law([0.9, 0.1], [0, 1], 400),
}


class Listed:
    """A distribution over 0, ..., N − 1 of any array library."""

    def __init__(self, log_prob):
        self.log_probs = log_prob

    def log_prob(self, y):
        return self.log_probs[y]


def of_law(law):
    """Prior, outcomes and reward of the levels of a law."""
    return Listed(law.log_prob), np.arange(len(law)), lambda y: law.rewards[y]


def kl_to_prior(target, y, log_prior):
    log_p = target.log_density(y)
    p = np.exp(log_p)
    return float(np.sum(p[p > 0] * (log_p - log_prior)[p > 0]))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("n", [0.01, 0.5, 1, 2, 3.7, 64, 1e6])
def test_agrees_with_the_exact_law(name, n):
    """The same masses as exact.selection.best_of_n, to rounding, however far in the tail."""
    law = LAWS[name]
    prior, y, reward = of_law(law)
    target = best_of_n(prior, reward, n, RewardCdf.exact(law.rewards, law.log_prob))
    want = selection.best_of_n(law, n)
    np.testing.assert_allclose(target.log_density(y), want, rtol=1e-11, atol=1e-10)
    assert target.log_z == 0.0
    assert target.log_potential_se is None


@pytest.mark.parametrize(("n", "temperature"), [(1, 1.0), (2, 1.0), (5, 0.3), (64, 0.05), (2.5, 2)])
@pytest.mark.parametrize("name", ["ties", "lattice"])
def test_soft_best_of_n_agrees_with_the_exact_law(name, n, temperature):
    """The same masses as exact.selection.soft_best_of_n."""
    law = LAWS[name]
    prior, y, reward = of_law(law)
    cdf = RewardCdf.exact(law.rewards, law.log_prob)
    target = soft_best_of_n(prior, reward, n, temperature, cdf)
    want = selection.soft_best_of_n(law, n, temperature)
    np.testing.assert_allclose(target.log_density(y), want, rtol=1e-10, atol=1e-10)


def brute(n, keep):
    """The law of the outcome kept from all n-tuples of draws; keep(rewards) -> probabilities."""
    out = np.zeros(4)
    for drawn in itertools.product(range(4), repeat=n):
        chosen = keep(REJECTING[list(drawn)])
        np.add.at(out, list(drawn), math.prod(P[list(drawn)]) * chosen)
    return out


REJECTING = np.array([1.0, 0.5, 1.0, -math.inf])


def best(rewards):
    return (rewards == rewards.max()) / (rewards == rewards.max()).sum()


def softmax(rewards):
    if rewards.max() == -math.inf:
        return np.full(len(rewards), 1 / len(rewards))
    w = np.exp(rewards - rewards.max())
    return w / w.sum()


@pytest.mark.parametrize("n", [1, 2, 4])
def test_is_the_law_of_the_draw_that_is_kept(n):
    """Every n-tuple of draws enumerated, ties broken at random, a rejected outcome the worst."""
    prior, y, reward = Listed(np.log(P)), np.arange(4), lambda y: REJECTING[y]
    cdf = RewardCdf.exact(REJECTING, np.log(P))
    hard, soft = best_of_n(prior, reward, n, cdf), soft_best_of_n(prior, reward, n, 1.0, cdf)
    np.testing.assert_allclose(np.exp(hard.log_density(y)), brute(n, best), rtol=1e-12)
    np.testing.assert_allclose(np.exp(soft.log_density(y)), brute(n, softmax), rtol=1e-10)


def test_from_the_prior_to_the_best_outcomes():
    """n = 1 is the prior, a huge n the prior on the best outcomes, in log space throughout."""
    cdf = RewardCdf.exact(R, np.log(P))
    at = lambda n: best_of_n(Listed(np.log(P)), lambda y: R[y], n, cdf).log_density(np.arange(4))
    np.testing.assert_array_equal(at(1), np.log(P))
    np.testing.assert_allclose(np.exp(at(1e9)), [0.25, 0, 0.75, 0], atol=1e-12)
    assert at(1e9)[3] == pytest.approx(1e9 * math.log(0.2), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1.0, 1.5, 2, 8, 100])
def test_the_kl_bound_holds(seed, n):
    """KL(best of n‖prior) <= log n − (n − 1)/n, with ties and without; masses sum to one."""
    rng = np.random.default_rng(seed)
    log_p = np.log(rng.dirichlet(np.full(50, 0.3)))
    rewards = rng.integers(0, 12, 50).astype(float) if seed % 2 else rng.normal(size=50)
    target = best_of_n(Listed(log_p), lambda y: rewards[y], n, RewardCdf.exact(rewards, log_p))
    y = np.arange(50)
    assert np.exp(target.log_density(y)).sum() == pytest.approx(1.0, abs=1e-13)
    assert -1e-13 <= kl_to_prior(target, y, log_p) <= math.log(n) - (n - 1) / n + 1e-12


def test_a_continuous_reward_attains_the_bound():
    """From a formula: density n F^(n − 1), and the KL is the bound."""
    cdf = RewardCdf.continuous(lambda r: r, lambda r: 1 - r)
    base = Target(Listed(np.zeros(1)), lambda y: 0.0 * y, log_z=0.0)
    n, u = 6, np.linspace(0.0, 1.0, 5)
    target = best_of_n(base.prior, lambda y: y, n, cdf)
    np.testing.assert_allclose(np.exp(target.log_potential(u)), n * u ** (n - 1), rtol=1e-12)
    log_density = lambda u: math.log(n) + (n - 1) * math.log(u)
    kl = quad(lambda u: n * u ** (n - 1) * log_density(u), 1e-12, 1)[0]
    assert kl == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-9)
    assert target.log_z == 0.0


def test_each_context_has_its_own_cdf():
    """A table with contexts is that of each column; labels pick columns for a batch."""
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 4, (30, 2, 3)) * 1.0
    log_p = np.moveaxis(np.log(rng.dirichlet(np.ones(30), (2, 3))), -1, 0)
    place = RewardCdf.exact(rewards, log_p).at(rewards)
    for i, j in itertools.product(range(2), range(3)):
        alone = RewardCdf.exact(rewards[:, i, j], log_p[:, i, j]).at(rewards[:, i, j])
        for got, want in zip(place[:4], alone[:4], strict=True):
            np.testing.assert_array_equal(got[:, i, j], want)
    some = RewardCdf.estimate(rewards[:, 0]).for_contexts(["a", "b", "c"])
    np.testing.assert_array_equal(
        some(["c", "a"]).at(rewards[:, 0][:, [2, 0]]).log_cdf,
        RewardCdf.estimate(rewards[:, 0]).at(rewards[:, 0]).log_cdf[:, [2, 0]],
    )
    target = best_of_n(lambda x: None, lambda y, x: y, 2, some)
    assert target.log_potential(rewards[:, 0, :2], ["b", "a"]).shape == (30, 2)
    assert target.log_z is None
    assert (target.log_potential_se(rewards[:, 0, :2], ["b", "a"]) > 0).all()


CDFS = {
    "exact": RewardCdf.exact(R, np.log(P)),
    "estimate": RewardCdf.estimate(np.random.default_rng(1).choice(R, 40)),
    "weighted": RewardCdf.estimate(
        np.random.default_rng(2).choice(R, 40), np.random.default_rng(3).normal(size=40)
    ),
}


def everything(cdf, r):
    """What a cdf is asked for, at rewards r."""
    identity = lambda y: y
    return [
        best_of_n(no_base, identity, 3, cdf).log_potential(r),
        soft_best_of_n(no_base, identity, 3, 0.5, cdf).log_potential(r),
        quantile(identity, cdf)(r),
        top_fraction(no_base, identity, 0.45, cdf).log_potential(r),
        cdf.standard_error(r),
    ]


@pytest.mark.parametrize(
    ("library", "name"),
    [pytest.param(jnp, "weighted", marks=pytest.mark.slow), (torch, "exact"), (torch, "weighted")],
)
def test_three_libraries_agree(name, library):
    """Tables made in NumPy serve JAX (under jit) and torch rewards, float32 ones too."""
    r = np.array([-3.0, -2.0, 0.5, 0.7, 1.0, 4.0])
    want = everything(CDFS[name], r)
    run = lambda r: everything(CDFS[name], r)
    for dtype, tolerance in ((library.float64, 1e-11), (library.float32, 1e-5)):
        made = (jax.jit(run) if library is jnp else run)(library.asarray(r, dtype=dtype))
        for got, expected in zip(made, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
        if library is jnp:
            break  # compiled once


@pytest.mark.slow
def test_tables_are_made_and_read_under_jit():
    """Static shapes: prior and rewards may be traced, and the masses differentiated."""
    y, reward = jnp.arange(4), lambda y: jnp.asarray(R)[y]

    def of_logits(logits):
        log_p = jax.nn.log_softmax(logits)
        cdf = RewardCdf.exact(jnp.asarray(R), log_p)
        return best_of_n(Listed(log_p), reward, 3, cdf).log_density(y), cdf

    @jax.jit
    def densities(logits):
        gradient = jax.jacobian(lambda x: jnp.exp(of_logits(x)[0]))(logits)
        density, cdf = of_logits(logits)
        soft = soft_best_of_n(Listed(jax.nn.log_softmax(logits)), reward, 3, 0.5, cdf)
        return (density, soft.log_density(y)), gradient

    logits = jnp.log(jnp.asarray(P))
    (hard, soft), gradient = densities(logits)
    cdf, args = RewardCdf.exact(R, np.log(P)), (Listed(np.log(P)), lambda y: R[y])
    np.testing.assert_allclose(hard, best_of_n(*args, 3, cdf).log_density(np.arange(4)), rtol=1e-12)
    want = soft_best_of_n(*args, 3, 0.5, cdf).log_density(np.arange(4))
    np.testing.assert_allclose(soft, want, rtol=1e-11)
    for k in range(4):

        def density(h, k=k):
            p = np.exp(np.log(P) + h * np.eye(4)[k])
            log_p = np.log(p / p.sum())
            cdf = RewardCdf.exact(R, log_p)
            target = best_of_n(Listed(log_p), lambda y: R[y], 3, cdf)
            return np.exp(target.log_density(np.arange(4)))

        np.testing.assert_allclose(
            gradient[:, k], (density(1e-6) - density(-1e-6)) / 2e-6, atol=1e-8
        )


def test_torch_masses_can_be_differentiated_beside_impossible_outcomes():
    """Two probabilities of 0 at one level give a gradient of 0, not NaN."""
    logits = torch.tensor([0.3, -1.0, -math.inf, -math.inf, 0.2], requires_grad=True)
    log_p = torch.log_softmax(logits, 0)
    cdf = RewardCdf.exact(torch.tensor([1.0, 2.0, 3.0, 3.0, 2.0]), log_p)
    density = cdf.at(torch.tensor([1.0, 2.0])).log_mass
    (gradient,) = torch.autograd.grad(density.sum(), logits)
    assert not gradient.isnan()[[0, 1, 4]].any()


SAMPLES = {
    "continuous": np.random.default_rng(4).normal(size=12),
    "ties": np.random.default_rng(5).integers(0, 4, 12) * 1.0,
    "one level": np.ones(12),
    "rejections": np.where(np.arange(12) < 5, -math.inf, np.arange(12) // 2 * 1.0),
}


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_a_fresh_draw_and_the_samples_are_exchangeable(samples):
    """Averaged over which of m + 1 rewards is the fresh one, weights are what they claim."""
    names = {
        "best of 4": (lambda cdf: best_of_n(no_base, lambda y: y, 4, cdf), 1.0),
        "best of 1.5": (lambda cdf: best_of_n(no_base, lambda y: y, 1.5, cdf), 1.0),
        "soft best of 4": (lambda cdf: soft_best_of_n(no_base, lambda y: y, 4, 0.7, cdf), 1.0),
        "top": (lambda cdf: top_fraction(no_base, lambda y: y, 0.3, cdf), 0.3),
    }
    for name, (make, want) in names.items():
        weights = []
        for i in range(len(samples)):
            cdf = RewardCdf.estimate(np.delete(samples, i))
            weights.append(np.exp(make(cdf).log_potential(samples[i : i + 1]))[0])
        assert np.mean(weights) == pytest.approx(want, rel=1e-10), name
    middle = [
        quantile(lambda y: y, RewardCdf.estimate(np.delete(samples, i)))(samples[i : i + 1])[0]
        for i in range(len(samples))
    ]
    assert np.mean(middle) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_standard_errors_cover(ties, weighted):
    """Over 300 estimated cdfs, errors are within 1.96 standard errors 95% of the time."""
    rng = np.random.default_rng(6)
    m, n, replications = 1000, 4, 300
    u = rng.random((m, replications))
    log_weights = None
    if weighted:  # drawn with density 2u on [0, 1] and weighted back
        u = np.sqrt(u)
        log_weights = -np.log(2 * u)
    level = lambda u: np.floor(6 * u) if ties else u
    cdf = RewardCdf.estimate(level(u), log_weights)
    at = np.array([0.3, 0.55, 0.93])
    exact = (
        RewardCdf.exact(np.arange(6.0), np.full(6, -math.log(6)))
        if ties
        else RewardCdf.continuous(lambda r: r)
    )
    r = np.broadcast_to(level(at)[:, None], (3, replications))
    makers = {
        "cdf": None,
        "best of n": lambda cdf: best_of_n(no_base, lambda y: y, n, cdf),
        "quantile": lambda cdf: quantile_tilt(no_base, lambda y: y, cdf, 0.5),
    }
    for name, make in makers.items():
        if make is None:
            error = np.exp(cdf.at(r).log_cdf) - np.exp(exact.at(level(at)).log_cdf)[:, None]
            se = cdf.standard_error(r)
        else:
            truth = make(exact).log_potential(level(at))[:, None]
            error, se = make(cdf).log_potential(r) - truth, make(cdf).log_potential_se(r)
        keep = se > 1e-9  # F = 1 at the highest level
        share = (np.abs(error) <= 1.96 * se)[keep].reshape(-1).mean()
        assert 0.91 < share < 0.98, (name, share)
        assert np.abs(error[~keep]).max(initial=0) < 1e-9


def test_the_standard_error_of_soft_best_of_n_is_that_of_the_jackknife():
    """Leaving out one sample after the other gives the same spread as the delta method."""
    samples = np.random.default_rng(9).normal(size=30)
    r = np.array([-1.0, 0.0, 1.5])
    make = lambda samples: soft_best_of_n(no_base, lambda y: y, 3, 0.8, RewardCdf.estimate(samples))
    left_out = np.array([make(np.delete(samples, i)).log_potential(r) for i in range(30)])
    spread = np.sqrt(29 / 30 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(make(samples).log_potential_se(r), spread, rtol=0.1)


def test_below_and_above_all_samples():
    """Neither is impossible: F is 1/(m + 1) below all, and 1 above all, with errors to match."""
    cdf = RewardCdf.estimate(np.arange(9.0))
    place = cdf.at(np.array([-5.0, 50.0]))
    np.testing.assert_allclose(np.exp(place.log_cdf), [0.1, 1.0])
    np.testing.assert_allclose(np.exp(place.log_below), [0.0, 0.9])
    target = best_of_n(no_base, lambda y: y, 3, cdf)
    np.testing.assert_allclose(
        np.exp(target.log_potential(np.array([-5.0, 50.0]))), [0.01, 10 * (1 - 0.9**3)]
    )
    below, above = target.log_potential_se(np.array([-5.0, 50.0]))
    assert 1.5 < below < 2.5  # F is known to a factor of e, and enters squared
    assert 0 < above < 0.3


@pytest.mark.parametrize("beta", [0.02, 0.5, 3.0])
def test_quantile_tilts_know_their_log_z(beta):
    """Without ties the closed form, with ties the sum over levels, by both conventions."""
    uniform = RewardCdf.continuous(lambda r: r)
    target = quantile_tilt(no_base, lambda y: y, uniform, beta)
    z = quad(lambda u: math.exp((u - 1) / beta), 0, 1)[0]
    assert target.log_z == pytest.approx(math.log(z) + 1 / beta, rel=1e-9)
    cdf = RewardCdf.exact(R, np.log(P))
    for upper in (False, True):
        tied = quantile_tilt(Listed(np.log(P)), lambda y: R[y], cdf, beta, upper=upper)
        total = np.logaddexp.reduce(tied.log_density(np.arange(4)))
        assert tied.log_z == pytest.approx(total, rel=1e-13)
    law = LAWS["ties"]
    np.testing.assert_allclose(quantile(lambda y: law.rewards[y], cdf)(np.arange(3)), law.win_rates)
    assert quantile_tilt(no_base, lambda y: y, CDFS["estimate"], beta).log_z is None
    columns = RewardCdf.exact(np.stack([R, -R], 1), np.log(np.stack([P, P], 1)))
    assert quantile_tilt(no_base, lambda y: y, columns, beta).log_z.shape == (2,)


@pytest.mark.parametrize("fraction", [1e-6, 0.2, 0.4, 0.40001, 0.7, 0.8, 1.0])
def test_the_top_fraction_has_exactly_its_mass(fraction):
    """The level on the boundary is kept in part, in proportion to the prior."""
    cdf = RewardCdf.exact(R, np.log(P))
    target = top_fraction(Listed(np.log(P)), lambda y: R[y], fraction, cdf)
    p = np.exp(target.log_density(np.arange(4)))
    assert p.sum() == pytest.approx(fraction, rel=1e-12)
    assert target.log_z == pytest.approx(math.log(fraction), abs=1e-15)
    assert p[0] / p[2] == pytest.approx(P[0] / P[2], rel=1e-12)
    above = {0: 0.0, 1: 0.4, 2: 0.0, 3: 0.8}
    level = [0.4, 0.4, 0.4, 0.2]
    want = [min(1, max(0, (fraction - above[i]) / level[i])) for i in range(4)]
    np.testing.assert_allclose(p, P * want, rtol=1e-9, atol=1e-15)


def test_top_fraction_without_ties_and_threshold():
    """From a formula it is an indicator; a threshold is one of the reward itself."""
    uniform = RewardCdf.continuous(lambda r: r, lambda r: 1 - r)
    target = top_fraction(no_base, lambda y: y, 0.25, uniform)
    np.testing.assert_array_equal(
        target.log_potential(np.array([0.5, 0.74, 0.76, 1.0])), [-math.inf, -math.inf, 0, 0]
    )
    kept = threshold(Listed(np.log(P)), lambda y: R[y], 0.5).log_density(np.arange(4))
    np.testing.assert_allclose(np.exp(kept), [0.1, 0.4, 0.3, 0.0])


def test_bases_that_are_targets_keep_what_they_know():
    """log Z adds up where it is known, and errors of potentials are carried along."""
    cdf = RewardCdf.exact(R, np.log(P))
    base = top_fraction(Listed(np.log(P)), lambda y: R[y], 0.7, cdf)
    p = np.exp(base.log_density(np.arange(4))) / 0.7
    again = best_of_n(base, lambda y: R[y], 3, RewardCdf.exact(R, np.log(np.maximum(p, 1e-300))))
    total = np.logaddexp.reduce(again.log_density(np.arange(4)))
    assert total == pytest.approx(math.log(0.7), abs=1e-12)
    assert again.log_z == pytest.approx(math.log(0.7), abs=1e-15)
    unknown = tilt(Listed(np.log(P)), lambda y: R[y], 1.0)
    assert best_of_n(unknown, lambda y: R[y], 3, cdf).log_z is None
    estimated = best_of_n(Listed(np.log(P)), lambda y: R[y], 3, CDFS["estimate"])
    tilted = tilt(estimated, lambda y: R[y], 1.0)
    np.testing.assert_array_equal(
        tilted.log_potential_se(np.arange(4)), estimated.log_potential_se(np.arange(4))
    )


HARD = {
    "some rejected": (np.array([-math.inf, 0.0, 1.0, -math.inf]), P),
    "all rejected": (np.full(4, -math.inf), P),
    "all equal": (np.ones(4), P),
    "impossible outcomes": (R, np.array([0.0, 0.7, 0.0, 0.3])),
    "infinitely good": (np.array([0.0, math.inf, 1.0, math.inf]), P),
    "the worst impossible": (np.array([0.0, 1.0, 2.0, -5.0]), np.array([0.2, 0.3, 0.5, 0.0])),
}


@pytest.mark.parametrize("rewards_and_p", HARD.values(), ids=HARD)
def test_nothing_is_nan(rewards_and_p):
    """Whatever is rejected, impossible or tied; estimated, exact; levels or none."""
    rewards, p = rewards_and_p
    log_p = np.log(np.where(p > 0, p, 1.0)) + np.where(p > 0, 0.0, -math.inf)
    asked = np.concatenate([rewards, [-math.inf, -7.0, 0.3, 9.0]])
    log_prior = np.concatenate([log_p, np.full(4, -math.inf)])
    prior, y, reward = Listed(log_prior), np.arange(8), lambda y: asked[y]
    sample = np.random.default_rng(0).choice(rewards, 20, p=p)
    for cdf in (RewardCdf.exact(rewards, log_p), RewardCdf.estimate(sample)):
        targets = [best_of_n(prior, reward, n, cdf) for n in (0.5, 1, 2, 1e6)]
        targets += [quantile_tilt(prior, reward, cdf, beta) for beta in (1e-2, 1.0)]
        targets += [top_fraction(prior, reward, a, cdf) for a in (1e-3, 0.5, 1.0)]
        targets += [threshold(prior, reward, a) for a in (-math.inf, 0.0, math.inf)]
        if not np.isposinf(rewards).any():
            targets += [soft_best_of_n(prior, reward, n, 0.5, cdf) for n in (1, 2, 100)]
        for target in targets:
            density = target.log_density(y)
            assert not np.isnan(density).any(), target.name
            assert (density < math.inf).all()
            assert (density[4:] == -math.inf).all()
            if target.log_z is not None:
                total = np.logaddexp.reduce(density)
                assert total == pytest.approx(target.log_z, abs=1e-9), target.name
            if target.log_potential_se is not None:
                se = target.log_potential_se(y)
                assert (se >= 0).all()
                assert np.isfinite(se).all(), target.name


def test_near_ties_merge_and_far_rewards_do_not():
    """0.1 + 0.2 ties with 0.3; a tolerance widens what ties."""
    rewards = np.array([0.1 + 0.2, 0.3, 1.0])
    log_p = np.log([0.2, 0.3, 0.5])
    np.testing.assert_allclose(
        np.exp(RewardCdf.exact(rewards, log_p).at(np.array([0.3])).log_mass), 0.5
    )
    coarse = RewardCdf.exact(rewards, log_p, tolerance=0.8)
    np.testing.assert_allclose(np.exp(coarse.at(np.array([0.5, 1.9])).log_mass), [1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: best_of_n(no_base, abs, 0, c), "finite n > 0, got 0"),
        (lambda c: best_of_n(no_base, abs, math.inf, c), "finite n > 0, got inf"),
        (lambda c: soft_best_of_n(no_base, abs, 0.5, 1.0, c), "finite n >= 1, got 0.5"),
        (lambda c: soft_best_of_n(no_base, abs, 2, 0.0, c), "temperature must be positive"),
        (lambda c: quantile_tilt(no_base, abs, c, -1.0), "beta must be positive"),
        (lambda c: top_fraction(no_base, abs, 0.0, c), r"in \(0, 1\], got 0"),
        (lambda c: threshold(no_base, abs, math.nan), "got nan"),
        (lambda c: RewardCdf.exact(R, np.log(P) + 0.1), "miss 1 by 0.105"),
        (lambda c: RewardCdf.estimate(np.zeros((2, 0))), r"rewards of shape \(2, 0\) and log-prob"),
        (lambda c: RewardCdf.exact(R * math.nan, np.log(P)), "4 of 4 rewards are NaN"),
        (lambda c: RewardCdf.estimate(R[:1]), "at least 2 samples, got 1"),
        (lambda c: RewardCdf.estimate(R, np.full(4, -math.inf)), "weight 0 in 1 of 1 contexts"),
        (lambda c: c.at(np.array([math.nan])), "1 of 1 rewards are NaN"),
        (lambda c: RewardCdf.estimate(np.stack([R, R], 1)).at(R), "for a cdf of contexts"),
        (lambda c: c.for_contexts(["a"]), "1 labels for a cdf of contexts"),
        # Unwrapped, as users have them: the tests check types before.
        (
            lambda c: inspect.unwrap(best_of_n)(no_base, lambda y: y, 2, None),
            r"got NoneType; get it with exact.reward_cdf\(",
        ),
        (
            lambda c: inspect.unwrap(soft_best_of_n)(no_base, lambda y: y, 2, 1.0, R),
            r"one, got ndarray; .* RewardCdf.estimate\(rewards of draws",
        ),
        (lambda c: inspect.unwrap(quantile)(lambda y: y, None), "cdf of a reward is a RewardCdf"),
        (
            lambda c: RewardCdf.estimate(np.stack([R, R], 1)).for_contexts("ab")(["z"]),
            "'z' is none of them",
        ),
        (
            lambda c: soft_best_of_n(
                no_base, lambda y: y, 2, 1.0, RewardCdf.continuous(lambda r: r)
            ).log_potential(R),
            "this cdf is a formula",
        ),
        (
            lambda c: soft_best_of_n(no_base, lambda y: y, 2, 1e-6, c).log_potential(R),
            "less than a hundred-thousandth",
        ),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    """What was given, what is needed."""
    with pytest.raises(ValueError, match=message):
        call(RewardCdf.exact(R, np.log(P)))


def test_how_an_estimated_potential_moves_each_estimate():
    """The slopes of all estimates in each log P(y_i), by finite differences."""
    rng = np.random.default_rng(7)
    policy, target = rng.normal(size=(2, 9, 2))
    target[0, 0] = -math.inf
    feature = rng.normal(size=(9, 2))
    kinds = (forward_kl, jensen_shannon, total_variation)

    def values(target):
        weights = LogWeights(policy=policy, target=target, proposal=0.3 * policy)
        return summarise(draws(weights, None, {"h": feature}), kinds, 0.95, khat=False).contexts

    weights = LogWeights(policy=policy, target=target, proposal=0.3 * policy)
    for i, step in ((0, 1e-5), (4, 1e-5)):
        se = np.zeros((9, 2))
        se[i] = 1.0
        bound = potential_errors(draws(weights, None, {"h": feature}), kinds, se)
        assert set(bound) == {"log_z", "target_h", *(k.name for k in kinds)}
        up, down = values(target + step * se), values(target - step * se)
        for name, got in bound.items():
            slope = np.abs(up[name][0] - down[name][0]) / (2 * step)
            np.testing.assert_allclose(got, slope, rtol=1e-5, atol=1e-9, err_msg=name)


def test_an_estimated_potential_widens_the_intervals_that_need_it():
    """log Z and KL of an estimated best-of-4 are covered; without the error they are not."""
    rng = np.random.default_rng(8)
    m, n, replications = 200, 2000, 300  # as many contexts: each has a cdf of its own
    target = best_of_n(no_base, lambda y: y, 4, RewardCdf.estimate(rng.random((m, replications))))
    u = rng.random((n, replications))
    d = draws(LogWeights(policy=np.zeros_like(u), target=target.log_potential(u)))
    se, kinds = target.log_potential_se(u), [forward_kl, reverse_kl]
    plain = summarise(d, kinds, 0.95, khat=False)
    wide = summarise(d, kinds, 0.95, khat=False, log_target_se=se)

    def covered(summary, name, truth):
        _, _, low, high, _ = summary.contexts[name]
        return float(np.mean((low <= truth) & (truth <= high)))

    assert covered(wide, "log_z", 0.0) >= 0.95
    assert covered(wide, "forward_kl", math.log(4) - 3 / 4) >= 0.95
    assert covered(wide, "reverse_kl", 3 - math.log(4)) >= 0.95
    assert covered(plain, "log_z", 0.0) <= 0.75
    assert wide.pooled["entropy"] == plain.pooled["entropy"]
    assert "potential is estimated" in wide.notes[-1]
    assert wide.pooled["log_z"].se > plain.pooled["log_z"].se
    with pytest.raises(ValueError, match="finite and >= 0"):
        assess(LogWeights(u, u), log_target_se=-se)
