"""A constant added to log P, or to a feature, moves log Z and that mean, and nothing else.

Rewards are multiples of 1/4, so that c is added to them without rounding; sums with logarithms of
probabilities round to the last place of c, and an error may be a few of those, not c times as many.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from infer_align import RewardCdf, diagnostics, divergences, estimators, soft_best_of_n, tilt
from infer_align.diagnostics import assess, assess_sample, batch_metrics, pareto_khat
from infer_align.estimators import LogWeights
from infer_align.jax import fit, source, tabular
from infer_align.samplers import (
    acceptance_curve,
    best_of_n,
    choose_log_beta,
    conditional_importance,
    conditional_smc,
    importance,
    independence_metropolis,
    local_metropolis,
    next_twist,
    prefix_twist,
    quasi_rejection,
    rejection,
    sampling_importance_resampling,
    smc,
)
from infer_align.targets import WeightedSample
from tests.sources import INF, TableSource, sequences

OFFSETS = [1e3, -1e6, 1e8]
every_offset = pytest.mark.parametrize("c", OFFSETS)


def rounding(c, dtype="float64"):
    """A few units in the last place of c."""
    return 1e-9 + 8 * float(np.finfo(dtype).eps) * abs(c)


# Estimators

LIBRARIES = {
    "numpy-float64": (lambda x: np.asarray(x, dtype="float64"), "float64", OFFSETS),
    "numpy-float32": (lambda x: np.asarray(x, dtype="float32"), "float32", [1e3, -1e5]),
    "torch-float32": (lambda x: torch.tensor(x, dtype=torch.float32), "float32", [1e5]),
}
RULES = {
    "known": lambda c: estimators.known_log_z(1.25 + c),
    "batch": lambda c: estimators.batch_log_z(),
    "leave one out": lambda c: estimators.batch_log_z(leave_one_out=True),
    "running": lambda c: estimators.running_log_z(),
    "running, decay": lambda c: estimators.running_log_z(decay=0.9),
    "per context": lambda c: estimators.per_context_log_z(2),
    "per context, decay": lambda c: estimators.per_context_log_z(2, decay=0.9),
}
BASELINES = [
    estimators.none(), estimators.dpg(), estimators.mean(), estimators.leave_one_out(),
    estimators.running(), estimators.running(decay=0.9),
]  # fmt: skip


def batches(c, array, *, off_policy):
    """Four batches of six outcomes in two contexts."""
    rng = np.random.default_rng(1)
    for _ in range(4):
        policy, proposal = -rng.integers(1, 12, (2, 6, 2)) / 4
        target = rng.integers(-8, 8, (6, 2)) / 4 + c
        q = array(proposal) if off_policy else None
        yield LogWeights(array(policy), array(target), q, np.arange(2))


def coefficients(estimator, c, array, *, off_policy):
    state, found = estimator.init(), []
    for weights in batches(c, array, off_policy=off_policy):
        update = estimator.update(state, weights)
        state = update.state
        found.append(np.asarray(update.coefficients, dtype=float))
    estimated = "reinforce" not in estimator.name  # whose log Z is called 0
    return np.stack(found), float(update.info.get("log_z", math.nan)) if estimated else math.nan


def pairs():
    """Estimators of an offset, all of which are free of it, and whether they know a baseline."""
    for divergence in divergences.ALL:
        yield lambda c, d=divergence: estimators.f_dpg(d), True
    for rule in RULES.values():
        for baseline in BASELINES:
            yield (
                lambda c, r=rule, b=baseline: estimators.f_dpg(
                    divergences.jensen_shannon, log_z=r(c), baseline=b
                ),
                baseline.off_policy,
            )
    for baseline in BASELINES[2:]:
        yield lambda c, b=baseline: estimators.reinforce(baseline=b), baseline.off_policy
        yield lambda c, b=baseline: estimators.reinforce(baseline=b, truncate=1.5), False
    yield lambda c: estimators.reinforce(truncate=1.5), True
    yield lambda c: estimators.vargrad(), True
    for rule in (estimators.known_log_z, estimators.learnt_log_z):
        yield lambda c, r=rule: estimators.trajectory_balance(log_z=r(np.full(2, 0.5) + c)), True


@pytest.mark.parametrize("library", LIBRARIES)
def test_coefficients_are_free_of_an_offset(library):
    """Every divergence, log-Z rule and baseline, on- and off-policy, over four steps."""
    array, dtype, offsets = LIBRARIES[library]
    for make, off_policy in pairs():
        for off in (False, True)[: 1 + off_policy]:
            plain, log_z = coefficients(make(0.0), 0.0, array, off_policy=off)
            for c in offsets:
                moved, moved_z = coefficients(make(c), c, array, off_policy=off)
                size, name = np.abs(plain).max(), make(c).name
                error = np.abs(moved - plain).max()
                assert error <= size * rounding(c, dtype) + 1e-6 * (dtype == "float32"), (name, c)
                if not math.isnan(log_z):
                    assert moved_z - c == pytest.approx(log_z, abs=rounding(c, dtype)), (name, c)


@every_offset
def test_the_exact_loss_of_log_variance_is_free_of_an_offset(c):
    """Σ q d² − (Σ q d)² had no digit left: 0 or 32 at an offset of 1e8, in place of 0.19."""
    q, policy, density = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.3, 0.5]), np.array([0.0, 1.0, 0.5])
    plain, moved = (estimators.vargrad().loss(policy, density + k, q) for k in (0.0, c))
    assert float(moved) == pytest.approx(float(plain), abs=rounding(c))


def test_leave_one_out_keeps_the_digits_of_many_offset_signals():
    """A thousand signals in single precision: sums of 1e8 round to 8, means of them to 0.008."""
    signal = np.random.default_rng(0).integers(-4, 5, (1000, 1)) / 4
    ratio = np.random.default_rng(1).integers(1, 9, 1000) / 4
    array = lambda x: np.asarray(x, dtype="float32")
    plain, moved = (
        estimators.leave_one_out().update({}, array(signal + c), array(ratio), math.inf)[0]
        for c in (0.0, 1e5)
    )
    np.testing.assert_allclose(moved - 1e5, plain, atol=0.008)


def over_steps(rule, values):
    """State of a rule after a step for each of the values, in one compiled loop."""

    def step(state, x):
        _, new = rule(state, x)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), new), None

    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), rule(None, values[0])[1])
    return jax.jit(lambda v: jax.lax.scan(step, start, v)[0])(values[1:])


@pytest.mark.parametrize("c", [0.0, 1e3, -1e5])
def test_running_means_over_many_steps_in_single_precision(c):
    """After 100,000 steps: a total has no digits left for the next one (it was off by c/300)."""
    x = np.random.default_rng(0).integers(-4, 5, 100_000) / 4
    values = jnp.asarray(x + c, jnp.float32)
    one = jnp.ones((1, 1), jnp.float32)
    running = estimators.running()
    mean = over_steps(
        lambda s, v: running.update(s or running.init(), v * one[None], one, math.inf), values
    )
    assert float(mean["origin"]) - c + float(mean["mean"]) == pytest.approx(x.mean(), abs=1e-3)
    rule = estimators.running_log_z()
    past = over_steps(
        lambda s, v: rule.update(s or rule.init(), LogWeights(0 * one[0], v * one[0])), values
    )
    log_z = float(past["origin"]) - c + float(past["log_mean"])
    assert log_z == pytest.approx(np.log(np.exp(x).mean()), abs=2e-3)


# Samplers


def table(c, *, seed=0, contexts=2, rejected=True):
    rng = np.random.default_rng(5)
    outcomes = sequences(3, 3)
    log_q = rng.normal(size=(len(outcomes), contexts))
    log_p = rng.integers(-4, 5, (len(outcomes), contexts)) / 4
    log_p[:: 5 if rejected else 100] = -INF
    return TableSource(outcomes, log_q, log_p + c, seed=seed, vocabulary=3)


def bound(source):
    return np.where(source.log_p > -INF, source.log_p - source.log_q, -INF).max(axis=0)


def ahead(c):
    """Log ψ of the next token, with the offset of the target in it."""
    return next_twist(lambda y: np.tile(np.arange(3) / 4 + y.sum(-1, keepdims=True) / 2 + c, 1))


def y_sum(c):
    return lambda y: y.sum(-1) / 4 + c


SAMPLERS = {
    "importance": lambda s, c: importance(s, 1000),
    "resampling": lambda s, c: sampling_importance_resampling(s, 300, 6000),
    "smoothed": lambda s, c: sampling_importance_resampling(s, 300, 3000, smooth=True),
    "without replacement": lambda s, c: sampling_importance_resampling(s, 300, 6000, replace=False),
    "rejection": lambda s, c: rejection(s, 500, bound(s) + 1e-5),
    "quasi-rejection": lambda s, c: quasi_rejection(s, 500, bound(s) - 1),
    "independence": lambda s, c: independence_metropolis(s, 300, 20, keep=3, thin=5),
    "local": lambda s, c: local_metropolis(s, 300, 10),
    "best of n": lambda s, c: best_of_n(table(c, rejected=False), y_sum(c), 4, 300),
    "filter": lambda s, c: smc(s, 600),
    "filter, next": lambda s, c: smc(s, 600, twist=ahead(c), ess_threshold=0.9),
    "filter, prefix": lambda s, c: smc(
        s, 600, twist=prefix_twist(lambda y: y.sum(-1) / 4 + c), ess_threshold=1
    ),
}


@every_offset
@pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers_choose_the_same_outcomes(draw, c):
    """Outcomes, weights and distance are those without the offset; so is what is said of them."""
    sources = [table(k) for k in (0.0, c)]
    plain, moved = (draw(s, k) for s, k in zip(sources, (0.0, c), strict=True))
    np.testing.assert_array_equal(moved.outcomes, plain.outcomes)
    np.testing.assert_allclose(moved.probabilities, plain.probabilities, atol=rounding(c))
    np.testing.assert_allclose(moved.total_variation, plain.total_variation, atol=rounding(c))
    np.testing.assert_allclose(moved.log_z - c, plain.log_z, atol=rounding(c))
    trees = [
        assess_sample(
            sample, log_policy=s.log_proposal(sample.outcomes), features={
                "plain": s.index(sample.outcomes) / 4, "moved": s.index(sample.outcomes) / 4 + k,
            },
        )
        for sample, s, k in zip((plain, moved), sources, (0.0, c), strict=True)
    ]  # fmt: skip
    same_assessment(*trees, c, {"log_z": c, "target_moved": c})
    values = sources[0].index(plain.outcomes) / 4
    got = moved.expectation(values + c) - c
    np.testing.assert_allclose(got, plain.expectation(values), atol=rounding(c))


def same_assessment(plain, moved, c, shifts):
    """Equal statistics, but for value and ends of those that move, and equal notes."""
    assert moved["diagnostics"].attrs["notes"] == plain["diagnostics"].attrs["notes"]
    for group in ("diagnostics", "diagnostics/contexts"):
        for name, want in plain[group].data_vars.items():
            x, y = (np.array(t, dtype=float) for t in (want, moved[group][name]))
            if name in shifts:
                y[[0, 2, 3]] -= shifts[name]
            size = 1 + np.abs(x[np.isfinite(x)]).max(initial=0.0)
            np.testing.assert_allclose(y, x, atol=4 * size * rounding(c), rtol=0, err_msg=name)


@every_offset
def test_bounds_of_log_z_move_by_the_offset(c):
    """Filters from nothing and from exact draws, both KLs, and the curve of quasi-rejection."""
    found = []
    for k in (0.0, c):
        s = table(k, seed=1, rejected=False)
        exact = rejection(s, 200, bound(s) + 1e-5)
        few = exact.outcomes[:20]
        below = diagnostics.replicate(lambda run, s=s: smc(s, 50), 20)
        above = [conditional_smc(s, few, 50), conditional_importance(s, few, 50)]
        policy = s.log_proposal(exact.outcomes)
        weights = importance(s, 500).log_weights
        curve = acceptance_curve(weights, np.array([k - 1, k + 1]))
        found.append(
            [np.array(diagnostics.log_z_bounds(below, x)[:4]) - k for x in above]
            + [
                np.array(diagnostics.forward_kl_bounds(exact, policy, below, above[0])[:6]),
                np.array(diagnostics.reverse_kl_bounds(policy, exact.log_target, below)[0]),
                np.array(curve[1:]),
                choose_log_beta(weights, acceptance_rate=0.3) - k,
                choose_log_beta(weights, total_variation_bound=0.1) - k,
            ]
        )
    for plain, moved in zip(*found, strict=True):
        np.testing.assert_allclose(moved, plain, atol=4 * rounding(c))


# Diagnostics


def weights_of(c, seed, *, off_policy, tied=False):
    """Log-weights, log prior and a feature of 2000 draws; tied: P/q is e^c or 0."""
    s = table(c, seed=seed, rejected=off_policy or tied)
    drawn = s.draw(2000)
    policy = s.log_q + np.random.default_rng(9).normal(size=s.log_q.shape) / 2
    policy = policy - np.log(np.exp(policy).sum(axis=0))
    index = s.index(drawn.outcomes)
    ours = np.take_along_axis(policy, index, 0) if off_policy else drawn.log_proposal
    constraint = np.where(drawn.log_target > -INF, drawn.log_proposal + c, -INF)
    target = constraint if tied else drawn.log_target
    return (
        LogWeights(ours, target, drawn.log_proposal if off_policy else None),
        drawn.log_proposal,
        index / 4,
    )


def assessed(c, seed, **settings):
    weights, log_prior, feature = weights_of(c, seed, **settings)
    return assess(
        weights,
        log_prior=log_prior,
        features={"plain": feature, "moved": feature + c},
        divergences=[divergences.reverse_kl, divergences.jensen_shannon, divergences.alpha(2.0)],
        log_target_se=np.full(feature.shape, 0.1),
        log_bound=8.0 + c,
    )


CASES = [(off, tied) for off in (False, True) for tied in (False, True)]
every_case = pytest.mark.parametrize(
    ("off_policy", "tied"), CASES, ids=["on", "on-tied", "off", "off-tied"]
)


@every_offset
@every_case
def test_assessments_say_the_same(off_policy, tied, c):
    """With the error of a potential and a known bound."""
    plain, moved = (assessed(k, 3, off_policy=off_policy, tied=tied) for k in (0.0, c))
    same_assessment(plain, moved, c, {"log_z": c, "policy_moved": c, "target_moved": c})
    one, other = (diagnostics.frontier_points({"": t}, feature="moved")[0] for t in (plain, moved))
    back = np.array(other.reward) - c * np.array([1, 0, 1, 1, 0])
    np.testing.assert_allclose(back, np.array(one.reward, dtype=float), atol=4 * rounding(c))


@every_offset
@every_case
def test_comparisons_say_the_same(off_policy, tied, c):
    """Changes of divergences, agreement of log Z, and what a fit reports of a batch."""
    found = []
    for k in (0.0, c):
        drawn = [weights_of(k, seed, off_policy=off_policy, tied=tied) for seed in (3, 4)]
        first, second = (assess(weights) for weights, _, _ in drawn)
        agreed = diagnostics.log_z_agreement(first, second)
        weights, log_prior, potential = drawn[0]
        potential = np.where(weights.target > -INF, potential + k, -INF)
        batch = batch_metrics(weights, log_prior, potential)
        changes = diagnostics.compare(drawn[0][0], drawn[1][0])
        found.append(
            {name: np.array(change) for name, change in changes.items()}
            | {name: np.array(agreed[name]) for name in ("difference", "se", "z")}
            | {name: agreed.attrs[name] for name in ("chi2", "unreliable")}
            | batch
            | {name: batch[name] - k for name in ("log_z", "log_potential")}
        )
    for name, want in found[0].items():
        got = found[1][name]
        np.testing.assert_allclose(got, want, rtol=rounding(c), atol=99 * rounding(c), err_msg=name)


@every_offset
def test_a_points_potential_moves_by_the_offset(c):
    """The mean potential of a policy on the frontier, from weighed draws; and a batch's KL."""
    found = []
    for k in (0.0, c):
        weights, log_prior, _ = weights_of(k, 3, off_policy=True)
        some = weights.target > -INF
        target = np.where(some, weights.target, weights.target[some].min())
        tree = assess(weights._replace(target=target), log_prior=log_prior)
        reward = diagnostics.frontier_points({"": tree})[0].reward
        batch = batch_metrics(weights._replace(target=target), log_prior, target - log_prior)
        numbers = np.array([*reward, batch["reverse_kl"]], dtype=float)
        found.append(numbers - k * np.array([1, 0, 1, 1, 0, 0]))
    np.testing.assert_allclose(found[1], found[0], atol=4 * rounding(c))


def test_a_feature_of_large_mean_has_its_own_spread():
    """Mean 1e8 and spread 1: by the mean of the squares the variance would be 0 or 4."""
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, 4000) / 4
    log_q = np.zeros(4000)
    weights = LogWeights(log_q, rng.integers(-2, 3, 4000) / 4 + 1e8)
    tree = assess(weights, features={"x": x + 1e8})
    value, se = tree["diagnostics"]["policy_x"].values[:2]
    assert value - 1e8 == pytest.approx(x.mean(), abs=1e-7)
    assert se == pytest.approx(x.std(ddof=1) / math.sqrt(4000), rel=1e-6)
    share = np.exp(weights.target - 1e8)
    share = share / share.sum()
    assert float(tree["diagnostics"]["target_x"][0]) - 1e8 == pytest.approx(share @ x, abs=1e-7)


@every_offset
def test_equal_weights_tie_at_every_offset(c):
    """log P − log q of a constraint: equal, but for the rounding of each sum. No tail to fit."""
    log_q = np.log(np.random.default_rng(0).uniform(size=(400, 2000)))
    log_p = np.full(2000, c)
    for token in log_q:  # a reward whose tokens are added to the offset
        log_p = log_p + token
    assert pareto_khat(log_p - log_q.sum(axis=0)) == -INF
    spread = np.random.default_rng(1).exponential(size=4000) / 2
    assert pareto_khat(spread + c) == pytest.approx(pareto_khat(spread), abs=1e-5)


@pytest.mark.parametrize("c", [0.0, 1e8])
def test_small_differences_are_seen_at_every_offset(c):
    """0.05 nats are no rounding of 1e8: of log Z that are certain, of weights, of a bound."""
    zero = np.full((400, 1), c)
    exact = [assess(LogWeights(zero, zero + k)) for k in (c, c + 0.05)]
    assert np.isinf(diagnostics.log_z_agreement(*exact)["z"]).all()
    rng = np.random.default_rng(0)
    log_w = rng.integers(0, 2, (400, 1)) / 4 + c
    other = log_w + np.where(log_w > c, 0.03125, 0.0)
    sample = WeightedSample(None, log_w, log_w, evidence=other)
    assert "ess_evidence" in assess_sample(sample)["diagnostics"]
    assert "ess_evidence" not in assess_sample(sample._replace(evidence=log_w))["diagnostics"]
    narrow = LogWeights(np.zeros((400, 1)), zero)
    assert not bool(assess(narrow, log_bound=c + 2.0)["diagnostics"]["log_z"][4])
    next_to_it = narrow._replace(target=np.nextafter(zero, INF))
    assert diagnostics.compare(narrow, next_to_it)["forward_kl"].reliable


# Declared models

PROBS, REWARDS = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.0, 1.0, 0.5, 2.0, 3.0])


def declared(c, dtype=jnp.float64):
    rewards = jnp.asarray(REWARDS + c, dtype)
    return tilt(dist.Categorical(probs=jnp.asarray(PROBS, dtype)), lambda y: rewards[y], 0.5)


@pytest.mark.parametrize(
    ("dtype", "c", "off_policy"), [(jnp.float64, 1e8, False), (jnp.float32, -1e5, True)]
)
def test_a_fit_of_a_program_takes_the_same_steps(dtype, c, off_policy):
    """Rewards in single precision, weighed in double: equal parameters and metrics."""
    proposal = dist.Categorical(probs=jnp.full(5, 0.2, dtype)) if off_policy else None
    for estimator in (
        estimators.reinforce(),
        estimators.f_dpg(divergences.total_variation, log_z=estimators.running_log_z()),
    ):
        plain, moved = (
            list(
                fit(
                    jax.random.key(0), tabular, jnp.zeros(5, dtype), declared(k, dtype), estimator,
                    n=16, steps=3, proposal=proposal,
                )
            )[-1]
            for k in (0.0, c)
        )  # fmt: skip
        np.testing.assert_allclose(moved.params, plain.params, atol=1e-6)
        shifts = {"log_z": 2 * c, "log_potential": 2 * c}
        for name, value in plain.metrics.items():
            got = moved.metrics[name] - shifts.get(name, 0.0)
            assert got == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(("dtype", "c"), [(jnp.float64, 1e8), (jnp.float32, 1e5)])
def test_a_source_of_a_program_draws_the_same(dtype, c):
    plain, moved = (importance(source(jax.random.key(1), declared(k, dtype)), 300) for k in (0, c))
    np.testing.assert_array_equal(moved.outcomes, plain.outcomes)
    np.testing.assert_allclose(moved.probabilities, plain.probabilities, atol=1e-7)
    assert moved.log_z - 2 * c == pytest.approx(plain.log_z, abs=1e-7)


@every_offset
def test_estimated_potentials_and_their_errors_are_free_of_an_offset(c):
    """Soft best-of-n by an estimated cdf: the ratio to the prior, and its standard error."""
    rng, found = np.random.default_rng(0), []
    sampled, prior = rng.choice(5, size=100, p=PROBS), dist.Categorical(probs=jnp.asarray(PROBS))
    for k in (0.0, c):
        reward = lambda y, k=k: jnp.asarray(REWARDS + k)[y]
        target = soft_best_of_n(prior, reward, 4, 0.5, RewardCdf.estimate(reward(sampled)))
        found.append([target.log_potential(jnp.arange(5)), target.log_potential_se(jnp.arange(5))])
    np.testing.assert_allclose(found[1], found[0], atol=rounding(c))


def test_a_histogram_of_a_large_feature_with_few_outliers():
    """Where 99.8% of the draws have one value the bins are about it, wide enough to differ."""
    x = np.full((20_000, 1), 1e8)
    x[:13, 0] += np.arange(1, 14)
    tree = assess(LogWeights(0 * x, 0 * x), features={"x": x})
    figure = Figure()
    FigureCanvasAgg(figure)
    diagnostics.plot_pairs(tree, figure)
    for patch in figure.axes[0].patches:
        assert np.isfinite(patch.get_xy()).all()
        assert patch.get_xy()[:, 1].max() > 0
