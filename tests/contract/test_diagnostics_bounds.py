"""Two-sided bounds: by enumeration of every run they bracket, tighten and keep their level."""

import itertools
import math

import numpy as np
import pytest

from infer_align import WeightedSample, diagnostics
from infer_align.diagnostics import (
    assess,
    assess_sample,
    forward_kl_bounds,
    log_z_agreement,
    log_z_bounds,
    replicate,
    reverse_kl_bounds,
)
from infer_align.estimators import LogWeights

Q = np.array([0.4, 0.3, 0.2, 0.1])
DENSITY = 2.0 * np.array([0.1, 0.2, 0.3, 0.4])  # Z = 2
P = DENSITY / 2.0
W = DENSITY / Q
POLICY = np.array([0.25, 0.35, 0.15, 0.25])
LOG_Z = math.log(2)
REVERSE = float((POLICY * np.log(POLICY / P)).sum())
FORWARD = float((P * np.log(P / POLICY)).sum())


def expectations(particles, weights=W):
    """E[log Ẑ] of all runs of importance sampling, and of conditional importance sampling."""
    runs = np.array(list(itertools.product(range(4), repeat=particles)))
    with np.errstate(divide="ignore"):
        log_z = np.log(weights[runs].mean(axis=1))
    free = Q[runs].prod(axis=1)
    conditional = P[runs[:, 0]] * Q[runs[:, 1:]].prod(axis=1)
    seen = conditional > 0
    means = ((conditional * np.exp(-np.where(seen, log_z, 0.0)))[seen]).sum()
    assert free @ np.exp(log_z) == pytest.approx(2.0)
    assert means == pytest.approx(1 / 2.0)  # E[1/Ẑ_cond] = 1/Z
    return free @ log_z, conditional[seen] @ log_z[seen]


def test_bounds_bracket_log_z_exactly_and_tighten_with_particles():
    bounds = np.array([expectations(k) for k in range(1, 8)])
    assert (bounds[:, 0] < LOG_Z).all()
    assert (bounds[:, 1] > LOG_Z).all()
    assert (np.diff(bounds[:, 0]) > 0).all()
    assert (np.diff(bounds[:, 1]) < 0).all()
    one = [float((Q * np.log(W)).sum()), float((P * np.log(W)).sum())]
    assert bounds[0] == pytest.approx(one)  # the ELBO and the EUBO: log Z ∓ the two KLs
    assert bounds[-1, 1] - bounds[-1, 0] < 0.3 * (bounds[0, 1] - bounds[0, 0])


def test_every_run_counted_the_ends_hold_at_their_level():
    """All outcomes of 3 runs of 2 particles: P(low > log Z) ≤ δ and P(high < log Z) ≤ δ."""
    runs = np.array(list(itertools.product(range(4), repeat=2)))
    log_z = np.log(W[runs].mean(axis=1))
    chances = Q[runs].prod(axis=1), P[runs[:, 0]] * Q[runs[:, 1]]
    three = np.array(list(itertools.product(range(16), repeat=3))).T
    for level in (0.5, 0.8, 0.95):
        bounds = log_z_bounds(log_z[three], log_z[three], level=level)
        missed_low = chances[0][three].prod(axis=0)[bounds.low > LOG_Z].sum()
        missed_high = chances[1][three].prod(axis=0)[bounds.high < LOG_Z].sum()
        assert missed_low <= (1 - level) / 2
        assert missed_high <= (1 - level) / 2
        alone = log_z_bounds(log_z[three], level=level)
        assert chances[0][three].prod(axis=0)[alone.low > LOG_Z].sum() <= 1 - level
        assert (alone.high == math.inf).all()


def test_fields_are_means_and_their_errors():
    rng = np.random.default_rng(0)
    lower, upper = rng.normal(size=(20, 3)), 1 + rng.normal(size=(10, 3))
    bounds = log_z_bounds(lower, upper, level=0.9)
    np.testing.assert_allclose(bounds.mean_low, lower.mean(axis=0))
    np.testing.assert_allclose(bounds.mean_high, upper.mean(axis=0))
    np.testing.assert_allclose(bounds.low, lower.mean(axis=0) - math.log(20) / 20)
    np.testing.assert_allclose(bounds.high, upper.mean(axis=0) + math.log(20) / 10)
    np.testing.assert_allclose(bounds.se_low, lower.std(axis=0, ddof=1) / math.sqrt(20))
    assert bounds.level == 0.9
    single = log_z_bounds(np.array([0.5]), np.array([1.0]))
    assert single.low == pytest.approx(0.5 - math.log(40))
    assert (single.se_low, single.se_high) == (math.inf, math.inf)
    empty = log_z_bounds(np.array([-np.inf, 0.0]))
    assert (empty.low, empty.mean_low, empty.se_low) == (-math.inf, -math.inf, math.inf)


def importance(rng, shape, particles):
    """log Ẑ of importance sampling, and of conditional importance sampling from an exact draw."""
    y = rng.choice(4, size=(*shape, particles), p=Q)
    start = rng.choice(4, size=(*shape, 1), p=P)
    lower = np.log(W[y].mean(axis=-1))
    return lower, np.log(W[np.concatenate([start, y[..., 1:]], axis=-1)].mean(axis=-1))


@pytest.mark.parametrize("particles", [1, 4, 32])
def test_bounds_bracket_log_z_in_samples_and_hold_at_their_level(particles):
    """2000 replications of R = 8 runs: means within 5σ of the exact ones, ends at their level."""
    lower, upper = importance(np.random.default_rng(particles), (8, 2000), particles)
    bounds = log_z_bounds(lower, upper)
    if particles <= 4:
        exact = expectations(particles)
        for got, expected in zip((bounds.mean_low, bounds.mean_high), exact, strict=True):
            assert abs(got.mean() - expected) < 5 * got.std() / math.sqrt(2000)
    assert bounds.mean_low.mean() < LOG_Z < bounds.mean_high.mean()
    held = (bounds.low <= LOG_Z) & (bounds.high >= LOG_Z)
    assert held.mean() >= 0.95


def test_ends_tighten_with_particles_and_with_runs():
    rng = np.random.default_rng(0)
    widths = [
        np.mean(b.high - b.low)
        for runs, particles in ((4, 4), (4, 64), (32, 64), (256, 64))
        for b in [log_z_bounds(*importance(rng, (runs, 200), particles))]
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.06


def test_kl_bounds_hold_at_their_level_and_bracket():
    """400 replications as contexts; π is neither the proposal nor the target."""
    rng = np.random.default_rng(3)
    lower, upper = importance(rng, (40, 400), 16)
    y = rng.choice(4, size=(300, 400), p=POLICY)
    reverse = reverse_kl_bounds(np.log(POLICY)[y], np.log(DENSITY)[y], lower, upper)
    y = rng.choice(4, size=(300, 400), p=P)
    exact = WeightedSample(None, np.zeros(y.shape), np.log(DENSITY)[y])
    forward = forward_kl_bounds(exact, np.log(POLICY)[y], lower, upper)
    y = rng.choice(4, size=(600, 400), p=Q)
    sample = WeightedSample(None, np.log(W)[y], np.log(DENSITY)[y])
    weighted = forward_kl_bounds(sample, np.log(POLICY)[y], lower, upper)
    for bounds, truth in ((reverse, REVERSE), (forward, FORWARD), (weighted, FORWARD)):
        assert bounds.level == 0.95
        assert np.mean((bounds.low <= truth) & (truth <= bounds.high)) >= 0.95
        assert bounds.mean_low.mean() < truth < bounds.mean_high.mean()
        assert np.mean(bounds.high - bounds.low) < 0.6
        assert (bounds.low >= 0).all()


def test_kl_bounds_of_one_side_only():
    lower = np.zeros(50)
    rng = np.random.default_rng(0)
    y, x = rng.choice(4, size=(2, 400), p=POLICY)
    reverse = reverse_kl_bounds(np.log(POLICY)[y], np.log(P)[y], lower)
    assert reverse.high == math.inf
    assert reverse.low > 0 or reverse.mean_low > 0
    exact = WeightedSample(None, np.zeros(400), np.log(P)[x])
    forward = forward_kl_bounds(exact, np.log(POLICY)[x], lower)
    assert forward.low == 0.0
    assert forward.high < math.inf


def test_infinite_and_undefined_divergences():
    zero = np.zeros(50)
    log_policy = np.full(300, -1.0)
    rejected = np.where(np.arange(300) == 0, -np.inf, -1.0)
    certain = reverse_kl_bounds(log_policy, rejected, zero, zero)
    assert (certain.low, certain.high) == (math.inf, math.inf)
    sample = WeightedSample(None, np.zeros(300), log_policy)
    certain = forward_kl_bounds(sample, rejected, zero, zero)
    assert (certain.low, certain.high, certain.mean_low) == (math.inf,) * 3
    empty = WeightedSample(None, np.full(300, -np.inf), log_policy)
    unknown = forward_kl_bounds(empty, log_policy, zero, zero)
    assert (unknown.low, unknown.high) == (0.0, math.inf)


def test_replicate_collects_log_z():
    def run(i):
        y = np.random.default_rng(i).choice(4, size=(50, 2), p=Q)
        return WeightedSample(y, np.log(W)[y], np.log(DENSITY)[y], evidence=np.log(W)[y])

    got = replicate(run, 5)
    assert got.shape == (5, 2)
    np.testing.assert_array_equal(got[3], run(3).log_z)
    with pytest.raises(ValueError, match=r"run 0 .* no evidence"):
        replicate(lambda i: run(i)._replace(evidence=None), 2)
    with pytest.raises(ValueError, match="at least 1"):
        replicate(run, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), np.array([0.0, -np.inf])), "1 of 2 conditional estimates are 0"),
        ((np.zeros((3, 2)), np.zeros(3)), r"contexts of shape \(2,\) and upper \(\)"),
        ((np.array([np.nan, 0.0]),), "lower has 1 NaN or"),
        ((np.array([0.0]), np.array([np.inf])), "upper has 1 NaN or"),
        ((np.zeros(0),), "at least one run"),
    ],
)
def test_bad_replications_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_z_bounds(*arguments)


def test_bad_draws_are_errors():
    with pytest.raises(ValueError, match="same contexts"):
        reverse_kl_bounds(np.zeros((9, 2)), np.zeros((9, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="probability 0 under the policy"):
        reverse_kl_bounds(np.full(9, -np.inf), np.zeros(9), np.zeros(3))
    with pytest.raises(ValueError, match="between 0 and 1"):
        log_z_bounds(np.zeros(3), level=95.0)


def assessed(seed, contexts, *, shift=0.0, n=400):
    y = np.random.default_rng(seed).choice(4, size=(n, contexts), p=Q)
    return assess(LogWeights(np.log(Q)[y], np.log(DENSITY)[y] + shift))


def test_agreement_of_two_samplers_and_with_the_truth():
    first, second = assessed(1, 60), assessed(2, 60)
    got = log_z_agreement(first, second)
    a, b = (t["diagnostics/contexts"]["log_z"].values for t in (first, second))
    np.testing.assert_allclose(got["z"], (a[0] - b[0]) / np.hypot(a[1], b[1]))
    assert got.attrs["chi2"] == pytest.approx(float((got["z"] ** 2).sum()))
    assert (got.attrs["contexts"], got.attrs["left_out"]) == (60, 0)
    assert got.attrs["p_chi2"] > 1e-3
    assert got.attrs["p_uniform"] > 1e-3
    truth = log_z_agreement(first, np.full(60, LOG_Z))
    assert truth.attrs["p_chi2"] > 1e-3
    wrong = log_z_agreement(first, assessed(3, 60, shift=0.1))
    assert wrong.attrs["p_chi2"] < 1e-4
    assert wrong.attrs["p_uniform"] < 1e-4
    assert wrong.attrs["mean_z"] < -1


def test_agreement_leaves_out_what_has_no_error_and_refuses_other_contexts():
    y = np.random.default_rng(0).choice(4, size=(400, 3), p=Q)
    log_w = np.log(W)[y]
    log_w[:, 1] = -np.inf
    sample = WeightedSample(None, log_w, log_w, evidence=log_w)
    got = log_z_agreement(assess_sample(sample), np.full(3, LOG_Z))
    assert (got.attrs["contexts"], got.attrs["left_out"]) == (2, 1)
    assert math.isnan(got["z"].values[1])
    equal = WeightedSample(None, np.ones((400, 2)), np.ones((400, 2)), evidence=np.ones((400, 2)))
    exact = log_z_agreement(assess_sample(equal), np.array([1.0, 2.0]))
    assert exact["z"].values.tolist() == [0.0, -math.inf]
    assert exact.attrs["p_chi2"] == 0.0
    chains = assess_sample(equal._replace(evidence=None))
    nothing = log_z_agreement(chains, np.zeros(2))
    assert nothing.attrs["contexts"] == 0
    assert math.isnan(nothing.attrs["p_chi2"])
    with pytest.raises(ValueError, match="3 contexts and the second 2"):
        log_z_agreement(assess_sample(sample), np.zeros(2))


def test_bounds_and_intervals_tell_the_same_story():
    """The interval of `assess_sample` lies within the bounds of many more runs, roughly."""
    rng = np.random.default_rng(8)
    lower, upper = importance(rng, (400,), 64)
    bounds = log_z_bounds(lower, upper)
    y = rng.choice(4, size=20_000, p=Q)
    log_w = np.log(W)[y]
    sample = WeightedSample(None, log_w, log_w, evidence=log_w)
    e = diagnostics.estimates(assess_sample(sample))["log_z"]
    assert bounds.low < e.value < bounds.high
