"""Second-order quantities of diagnostics and samplers, each against a number computed by hand."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from infer_align import WeightedSample, diagnostics
from infer_align._reliability import worth
from infer_align.diagnostics._units import by_number
from infer_align.estimators import LogWeights
from infer_align.samplers import acceptance_curve, independence_metropolis, resample
from tests.sources import TableSource

normal = NormalDist().inv_cdf


def halves(centre, spread, n):
    """n values, half of them on each side: of that mean, of skew 0."""
    return centre + spread * np.where(np.arange(n) % 2, 1.0, -1.0)


def test_kl_bounds_spend_half_on_log_z_and_half_on_the_expectation():
    """δ = 0.1: the expectation at 95%, log Z at 95%, of which each end has half: log(2/0.05)/R."""
    n, runs = 400, 25
    log_z = halves(0.7, 0.2, runs + 1)[:runs]
    se = 0.5 / math.sqrt(n - 1)
    half, penalty = normal(0.975) * se, math.log(40) / runs
    zero = np.zeros(n)
    bounds = diagnostics.reverse_kl_bounds(zero, -halves(2.0, 0.5, n), log_z, log_z, level=0.9)
    assert bounds.low == pytest.approx(2.0 - half + log_z.mean() - penalty)
    assert bounds.high == pytest.approx(2.0 + half + log_z.mean() + penalty)
    assert bounds.mean_low == pytest.approx(2.0 + log_z.mean())
    run_se = log_z.std(ddof=1) / math.sqrt(runs)
    assert bounds.se_low == pytest.approx(math.hypot(se, run_se))
    assert bounds.se_high == pytest.approx(math.hypot(se, run_se))
    exact = WeightedSample(None, zero, halves(2.0, 0.5, n))
    bounds = diagnostics.forward_kl_bounds(exact, zero, log_z, log_z, level=0.9)
    assert bounds.low == pytest.approx(2.0 - half - log_z.mean() - penalty)
    assert bounds.high == pytest.approx(2.0 + half - log_z.mean() + penalty)
    assert (bounds.level, bool(bounds.reliable)) == (0.9, True)


def test_a_kl_bound_of_one_side_spends_its_half_there():
    """Without conditional runs log Z has one end, at log(1/0.05)/R."""
    zero, log_z = np.zeros(400), np.full(25, 0.7)
    half = normal(0.975) * 0.5 / math.sqrt(399)
    bounds = diagnostics.reverse_kl_bounds(zero, -halves(2.0, 0.5, 400), log_z, level=0.9)
    assert bounds.low == pytest.approx(2.7 - half - math.log(20) / 25)
    assert bounds.high == math.inf
    exact = WeightedSample(None, zero, halves(2.0, 0.5, 400))
    bounds = diagnostics.forward_kl_bounds(exact, zero, log_z, level=0.9)
    assert bounds.high == pytest.approx(1.3 + half + math.log(20) / 25)
    assert bounds.low == 0.0


def of_kl(contexts):
    """Weights e^±s in equal numbers: log Ẑ = log cosh s, KL(π‖p) the same, and their errors."""
    n = 600
    log_w = np.stack([halves(0.0, s, n) for s in contexts], axis=1)
    return LogWeights(np.zeros_like(log_w), log_w)


def test_the_change_of_a_divergence_has_the_errors_of_both_sides():
    """Influences of log Ẑ are ± tanh s: se² = Σ tanh² s / (n − 1) on each side, over C²."""
    before, after = of_kl([0.3, 0.5]), of_kl([0.1, 0.2])
    change = diagnostics.compare(before, after, level=0.8)["log_z"]
    value = sum(math.log(math.cosh(s)) for s in (0.1, 0.2)) / 2
    value -= sum(math.log(math.cosh(s)) for s in (0.3, 0.5)) / 2
    variance = sum(math.tanh(s) ** 2 / 599 for s in (0.3, 0.5, 0.1, 0.2)) / 4
    assert change.value == pytest.approx(value)
    assert change.se == pytest.approx(math.sqrt(variance))
    # Second order: each log Ẑ is low by tanh² s/2n, before and after.
    bias = sum(-(math.tanh(s) ** 2) / 1200 for s in (0.1, 0.2)) / 2
    bias -= sum(-(math.tanh(s) ** 2) / 1200 for s in (0.3, 0.5)) / 2
    assert change.high == pytest.approx(value + normal(0.9) * math.sqrt(variance), abs=1e-5)
    assert change.low == pytest.approx(value - normal(0.9) * math.sqrt(variance) - bias, abs=1e-5)


def test_pooled_errors_are_of_the_mean_over_contexts():
    tree = diagnostics.assess(of_kl([0.3, 0.5, 0.1]))
    z = diagnostics.estimates(tree)["log_z"]
    assert z.se == pytest.approx(
        math.sqrt(sum(math.tanh(s) ** 2 / 599 for s in (0.3, 0.5, 0.1))) / 3
    )
    data = tree["diagnostics"]
    each = [600 / (math.cosh(2 * s) / math.cosh(s) ** 2) for s in (0.3, 0.5, 0.1)]
    assert float(data["ess"]) == pytest.approx(sum(each))
    assert float(data["ess_min"]) == pytest.approx(min(each))
    assert float(data["ess_per_draw"]) == pytest.approx(sum(each) / 1800)


def test_the_share_of_accepted_draws_has_wilsons_interval_at_the_level():
    """30 of 40 at 90%: the roots of (p − 0.75)² = z² p (1 − p)/40."""
    log_p = np.where(np.arange(40) < 30, 0.0, -np.inf)
    tree = diagnostics.assess(LogWeights(np.zeros(40), log_p), level=0.9, divergences=())
    share = diagnostics.estimates(tree)["acceptance"]
    z2 = normal(0.95) ** 2 / 40
    roots = np.sort(np.roots([1 + z2, -(1.5 + z2), 0.75**2]))
    assert (share.low, share.high) == pytest.approx(tuple(roots))
    assert share.se == pytest.approx(math.sqrt(0.75 * 0.25 / 40))
    wide = diagnostics.assess(
        LogWeights(np.zeros((40, 2)), np.stack([log_p, log_p], axis=1)), level=0.9, divergences=()
    )
    pooled = diagnostics.estimates(wide)["acceptance"]
    z2 = normal(0.95) ** 2 / 80
    assert pooled.low == pytest.approx(np.roots([1 + z2, -(1.5 + z2), 0.75**2]).min())


def test_drift_is_a_ratio_with_its_delta_method_error():
    """Per context the residuals Σ(x − R t), over the tokens of all; perplexity by its logarithm."""
    x = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 6.0]])
    tokens = np.array([[1, 2], [2, 1], [1, 3]])
    found = diagnostics.drift(np.zeros((3, 2)), -x, tokens, level=0.9)
    rate = 16 / 10
    residual = x - rate * tokens
    se = math.sqrt((residual.var(axis=0, ddof=1)).sum() * 3) / 10
    assert found.kl_per_token.value == pytest.approx(rate)
    assert found.kl_per_token.se == pytest.approx(se)
    assert found.kl_per_token.high == pytest.approx(rate + normal(0.95) * se)
    assert found.perplexity.value == pytest.approx(math.exp(rate))
    assert found.perplexity.se == pytest.approx(math.exp(rate) * se)
    assert found.perplexity.low == pytest.approx(math.exp(rate - normal(0.95) * se))
    assert not found.kl_per_token.reliable  # three draws


def test_drift_is_claimed_from_200_draws_on():
    for n, sure in ((199, False), (200, True)):
        found = diagnostics.drift(np.zeros(n), -halves(1.0, 0.5, n), np.ones(n))
        assert found.kl_per_token.reliable == found.perplexity.reliable == sure


def test_positions_have_the_errors_of_a_mean_over_contexts():
    x = np.array([[[1.0, 2.0], [0.5, 4.0]], [[3.0, 9.0], [1.5, 0.0]]])
    found = diagnostics.by_position(x, np.array([[2, 2], [1, 2]]))
    # At t = 1 of the first context the second outcome has ended: 0.
    first = [np.var([1, 3], ddof=1), np.var([0.5, 1.5], ddof=1)]
    second = [np.var([2, 0], ddof=1), np.var([4, 0], ddof=1)]
    np.testing.assert_allclose(found.se, [math.sqrt(sum(v) / 2) / 2 for v in (first, second)])
    np.testing.assert_allclose(found.alive, [1.0, 0.75])
    np.testing.assert_allclose(found.per_token_se, found.se / [1.0, 0.75])


def test_a_frontier_point_has_the_error_of_the_policys_mean():
    """Two contexts; π/q weights; the scale multiplies everything but the claim."""
    rng = np.random.default_rng(0)
    prior, policy = rng.normal(size=(2, 300, 2))
    proposal, potential = rng.normal(size=(2, 300, 2))
    tree = diagnostics.assess(
        LogWeights(policy, prior + potential, proposal), log_prior=prior, level=0.8
    )
    (point,) = diagnostics.frontier_points({"a": tree}, scale=2.0)
    v = np.exp(policy - proposal)
    v = v / v.mean(axis=0)
    mean = (v * potential).mean(axis=0)
    se = math.sqrt(sum((v * (potential - mean)).var(axis=0, ddof=1) / 300)) / 2
    assert point.reward.value == pytest.approx(2 * mean.mean())
    assert point.reward.se == pytest.approx(2 * se)
    assert point.reward.high - point.reward.value == pytest.approx(2 * normal(0.9) * se)


def test_agreement_counts_the_errors_of_both():
    """z = difference over √(se² + se'²); χ² has one degree a context."""
    first, second = diagnostics.assess(of_kl([0.3, 0.5])), diagnostics.assess(of_kl([0.2, 0.6]))
    found = diagnostics.log_z_agreement(first, second)
    z = []
    for s, t in ((0.3, 0.2), (0.5, 0.6)):
        gap = math.log(math.cosh(s)) - math.log(math.cosh(t))
        z.append(gap / math.sqrt((math.tanh(s) ** 2 + math.tanh(t) ** 2) / 599))
    np.testing.assert_allclose(found["z"], z)
    np.testing.assert_allclose(found["pit"], stats.norm.cdf(z))
    assert found.attrs["chi2"] == pytest.approx(z[0] ** 2 + z[1] ** 2)
    assert found.attrs["p_chi2"] == pytest.approx(math.exp(-(z[0] ** 2 + z[1] ** 2) / 2))
    assert found.attrs["mean_z"] == pytest.approx(np.mean(z))


def test_clusters_are_corrected_by_their_number():
    """4 clusters of sums φ: se² = Σ φ²/(4·3), φ = 4 Σ p (h − h̄)."""
    h = np.array([1.0, 2.0, 4.0, 0.0, 3.0, 2.0])
    cluster = np.array([0, 0, 1, 2, 2, 3])
    sample = WeightedSample(None, np.zeros(6), np.zeros(6), cluster=cluster)
    got = diagnostics.estimates(diagnostics.assess_sample(sample, features={"h": h}))["target_h"]
    sums = [sum((h - 2.0)[cluster == k]) / 6 * 4 for k in range(4)]
    assert got.se == pytest.approx(math.sqrt(sum(x**2 for x in sums) / 12))
    (units,) = by_number(cluster[:, None])
    ess = worth(np.log(units.total(np.ones((6, 1))))).ess
    assert float(ess[0]) == pytest.approx(36 / (4 + 1 + 4 + 1))


def test_estimates_that_are_not_matched_add_their_errors():
    """H(p) of exact draws beside other evidence: se of the mean + se of log Ẑ, not their root."""
    log_p, evidence = halves(1.0, 0.5, 400), halves(0.0, 0.3, 600)
    sample = WeightedSample(None, np.zeros(400), log_p, evidence=evidence)
    got = diagnostics.estimates(diagnostics.assess_sample(sample))["entropy_target"]
    se = 0.5 / math.sqrt(399) + math.tanh(0.3) / math.sqrt(599)
    assert got.value == pytest.approx(math.log(math.cosh(0.3)) - 1.0)
    assert got.se == pytest.approx(se)


def test_an_interval_that_lies_outside_ends_an_error_inside():
    """A KL of −1 ± 0.1: from 0 to 0.1, and not claimed."""
    sample = WeightedSample(None, np.zeros(400), halves(-1.0, 2.0, 400), evidence=np.zeros(400))
    got = diagnostics.estimates(diagnostics.assess_sample(sample, log_prior=np.zeros(400)))
    kl = got["kl_target_prior"]
    assert kl.low == 0
    assert kl.high == pytest.approx(2.0 / math.sqrt(399))
    assert not kl.reliable


def test_no_acceptance_in_n_says_what_the_level_says():
    """P(accept) ≤ 1 − 0.1^(1/50) at 90%."""
    log_p = np.full(50, -np.inf)
    weights = LogWeights(np.zeros(50), log_p)
    z = diagnostics.estimates(diagnostics.assess(weights, level=0.9, divergences=()))["log_z"]
    assert z.high == pytest.approx(math.log(1 - 0.1 ** (1 / 50)))


def test_resampled_shares_are_off_by_their_first_order_bias():
    """½ Σ p |p − Σ p²|; of several contexts each has its own."""
    log_w = np.log(np.array([[1.0, 1.0], [2.0, 1.0], [5.0, 2.0]]))
    sample = WeightedSample(np.zeros((3, 2)), log_w, log_w, evidence=log_w)
    got = resample(sample, 10, np.random.default_rng(0)).total_variation
    for c, p in enumerate(([1 / 8, 2 / 8, 5 / 8], [1 / 4, 1 / 4, 1 / 2])):
        square = sum(x**2 for x in p)
        assert got[c] == pytest.approx(0.5 * sum(x * abs(x - square) for x in p))


def test_chains_are_as_far_as_their_earliest_kept_state():
    """(1 − Ẑ/max w)^t of the earliest of three states 5 apart, of 14 steps: t = 4."""
    q, p = np.log([0.6, 0.3, 0.1]), np.log([0.6, 0.6, 0.5])
    source = TableSource(np.arange(3), q, p, seed=2)
    got = independence_metropolis(source, 50, 14, keep=3, thin=5)
    w = np.exp(got.evidence)
    assert got.total_variation == pytest.approx((1 - w.mean() / w.max()) ** 4)
    assert got.log_weights.shape == (150,)
    assert len(got.evidence) == 50 * 15
    assert got.calls == 50 * 15


def test_the_curve_of_quasi_rejection_on_three_weights():
    """β = 1 on weights ½, 1, 4: Z = 5.5/3, Z_β = 2.5/3."""
    got = acceptance_curve(np.log([0.5, 1.0, 4.0]), 0.0)
    p, p_beta = np.array([0.5, 1, 4]) / 5.5, np.array([0.5, 1, 1]) / 2.5
    assert got.acceptance_rate[0] == pytest.approx(2.5 / 3)
    assert got.total_variation[0] == pytest.approx(0.5 * np.abs(p - p_beta).sum())
    assert got.total_variation_bound[0] == pytest.approx(4 / 5.5)
    assert got.forward_kl[0] == pytest.approx((p * np.log(p / p_beta)).sum())
