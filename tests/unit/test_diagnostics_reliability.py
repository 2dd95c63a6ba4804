"""The one rule of reliability: what a claim adds near its limits, and what a known bound adds."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from infer_align import WeightedSample, condition, diagnostics, moment_match, solve_moments, tilt
from infer_align._reliability import Worth, worth
from infer_align.diagnostics._draws import draws
from infer_align.diagnostics._estimates import Moments, interval, moments, pooled_interval
from infer_align.diagnostics._summary import summarise
from infer_align.divergences import forward_kl, jensen_shannon, reverse_kl
from infer_align.estimators import LogWeights
from infer_align.samplers import importance, independence_metropolis, rejection
from infer_align.targets import kl_budget
from tests.sources import TableSource

Z95 = NormalDist().inv_cdf(0.975)


def weights_of(*values_and_counts):
    """Log-weights (n, 1): each value as often as said."""
    return np.log(np.concatenate([np.full(count, value) for value, count in values_and_counts]))[
        :, None
    ].astype(float)


def test_the_bound_of_the_ess_by_hand():
    """Weights 20 (60 times) and 1 (540 times): b = w/2.9, influence 2b − b²/mean(b²) − 1."""
    kind = worth(weights_of((20.0, 60), (1.0, 540)))
    b = np.array([20 / 2.9, 1 / 2.9])
    square = 0.1 * b[0] ** 2 + 0.9 * b[1] ** 2
    influence = 2 * b - b**2 / square - 1
    spread = math.sqrt((60 * influence[0] ** 2 + 540 * influence[1] ** 2) / 600**2)
    np.testing.assert_allclose(kind.ess, 600 / square)
    np.testing.assert_allclose(kind.spread, spread)
    np.testing.assert_allclose(kind.least, 600 / square * math.exp(-1.6448536269514722 * spread))
    np.testing.assert_allclose(kind.influence[[0, -1], 0], influence)
    assert kind.khat == -math.inf
    assert kind.accepted == 600


def test_lognormal_weights_say_how_much_of_the_spread_is_not_shown():
    """Of m draws with r = m/ESS and a tail, log ESS has variance (r⁴ − 4r² + 4r − 1)/m at least."""
    z = np.array([NormalDist().inv_cdf((i + 0.5) / 400) for i in range(400)])
    kind = worth(z[:, None])
    assert kind.khat > 0
    w = np.exp(z)
    r = 400 * (w**2).sum() / w.sum() ** 2
    spread = math.sqrt((r**4 - 4 * r**2 + 4 * r - 1) / 400)
    shown = math.sqrt(float((kind.influence**2).sum())) / 400
    assert shown < spread
    np.testing.assert_allclose(kind.spread, spread)
    np.testing.assert_allclose(kind.understated, spread / shown)
    assert worth(weights_of((20.0, 60), (1.0, 540))).understated == 1.0  # no tail


def limit(*, least=230.0, spread=0.1, khat=-math.inf, influence=None, understated=1.0):
    column = np.array([[1.0], [-1.0], [0.0]]) if influence is None else influence
    one = lambda x: np.array([x])
    return Worth(one(300.0), one(least), one(khat), column, one(spread), one(400), one(understated))


def test_what_a_claim_adds_near_the_limit_of_the_ess():
    """log(230/200)/0.1 = 1.3976 standard deviations within: z − m = 0.5624, times correlation."""
    kind, near = limit(), Z95 - math.log(1.15) / 0.1
    up = np.array([[1.0], [-1.0], [0.0]])
    half = np.array([[1.0], [0.0], [-1.0]])  # of correlation 1/2
    third = np.zeros(1)
    for influence, low, high in ((up, near, 0.0), (-up, 0.0, near), (half, near / 2, 0.0)):
        got = kind.selects(influence, third, Z95)
        np.testing.assert_allclose(np.ravel(got), [low, high], atol=1e-12)
    unknown = kind.selects(np.zeros((0, 1)), third, Z95)
    np.testing.assert_allclose(np.ravel(unknown), [near, near])
    far = limit(least=200 * math.exp(0.2)).selects(up, third, Z95)
    np.testing.assert_allclose(np.ravel(far), 0.0)
    at = limit(least=200.0).selects(up, third, Z95)
    np.testing.assert_allclose(np.ravel(at), [Z95 / 2, 0.0])
    below = limit(least=199.0).selects(up, third, Z95)
    np.testing.assert_allclose(np.ravel(below), 0.0)  # nothing is claimed
    other = limit(least=115.0).selects(up, third, Z95, ess_min=100.0)
    np.testing.assert_allclose(np.ravel(other), [near, 0.0])
    hidden = limit(understated=3.0).selects(half, third, Z95)
    np.testing.assert_allclose(np.ravel(hidden), [3 * near / 2, 0.0])


def test_what_a_claim_adds_near_the_limit_of_khat():
    """k̂ = 0.3 of 400 draws: 60 in the tail, sd 1.3/√60; at the end of the skew only."""
    kind = limit(least=1e6, khat=0.3)
    near = Z95 - 0.2 * math.sqrt(60) / 1.3
    flat = np.zeros((3, 1))
    for third, ends in ((1.0, [0.0, near]), (-1.0, [near, 0.0])):
        got = kind.selects(flat, np.array([third]), Z95)
        np.testing.assert_allclose(np.ravel(got), ends)


def test_the_second_order_term_of_divergences_is_their_jackknife_bias():
    """Σ over leave-one-out estimates, (n − 1)(mean − value), to order 1/n²."""
    rng = np.random.default_rng(0)
    log_w = 0.7 * rng.normal(size=(400, 1))
    log_v = 0.3 * rng.normal(size=(400, 1))
    laws = (reverse_kl, forward_kl, jensen_shannon)

    def at(keep):
        weights = LogWeights(log_v[keep] - 1.0, log_w[keep] - 1.0, np.full_like(log_v[keep], -1.0))
        features = {"h": log_v[keep] + log_w[keep] ** 2}
        return moments(draws(weights, None, features), laws)

    whole = at(np.arange(400))
    out = {name: [] for name in whole}
    for i in range(400):
        for name, m in at(np.delete(np.arange(400), i)).items():
            out[name].append(float(m.value[0]))
    for name in ("log_z", "policy_h", "target_h", *(law.name for law in laws)):
        jackknife = 399 * (np.mean(out[name]) - float(whole[name].value[0]))
        assert float(whole[name].bias[0]) == pytest.approx(jackknife, rel=0.05, abs=1e-6), name


def test_an_interval_has_room_for_what_is_of_second_order():
    """Without se the end is z² |B| away, on the side of B; with it √((z se)² + (z² B)²)."""
    low, high = interval(0.0, 0.0, 0.0, 0.95, bias=-0.01)
    assert (float(low), float(high)) == pytest.approx((-(Z95**2) * 0.01, 0.0))
    low, high = interval(0.0, 0.02, 0.0, 0.95, bias=0.01)
    assert float(low) == pytest.approx(-Z95 * 0.02)
    assert float(high) == pytest.approx(math.hypot(Z95 * 0.02, Z95**2 * 0.01))
    low, high = interval(0.0, 0.02, 0.0, 0.95, longer=(0.5, 0.25))
    assert (float(low), float(high)) == pytest.approx((-(Z95 + 0.5) * 0.02, (Z95 + 0.25) * 0.02))


def test_forward_kl_near_its_top_is_not_claimed():
    """Weights 20 at a share of 0.113, where KL(p‖π) is largest: its influences all but vanish."""
    log_w = weights_of((20.0, 1130), (1.0, 8870))
    got = summarise(draws(LogWeights(0 * log_w, log_w)), (forward_kl, reverse_kl), 0.95).pooled
    assert got["log_z"].reliable
    assert got["reverse_kl"].reliable
    x = 0.113
    second = -2 * 19 * 20 * math.log(20) / (1 + 19 * x) ** 3 + 361 / (1 + 19 * x) ** 2
    down = Z95**2 * abs(second) / 2 * x * (1 - x) / 10_000
    assert got["forward_kl"].value - got["forward_kl"].low == pytest.approx(down, rel=0.1)
    near = weights_of((20.0, 113), (1.0, 887))
    got = summarise(draws(LogWeights(0 * near, near)), (forward_kl,), 0.95).pooled
    assert not got["forward_kl"].reliable


def test_pooled_intervals_have_room_for_the_contexts_common_bias():
    """log Ẑ of a context is low by Σ ψ²/2n²: the upper end of the mean over 50 moves out by it."""
    rng = np.random.default_rng(0)
    log_w = rng.normal(size=(1500, 50))
    m = moments(draws(LogWeights(np.zeros_like(log_w), log_w)), ())["log_z"]
    b = np.exp(log_w) / np.exp(log_w).mean(axis=0)
    bias = ((b - 1) ** 2).sum(axis=0) / 2 / 1500**2
    np.testing.assert_allclose(m.bias, -bias)
    error = math.sqrt((m.se**2).sum()) / 50
    mean, se, _, high = pooled_interval(m._replace(third=0 * m.third, fourth=0 * m.fourth), 0.95)
    assert se == pytest.approx(error)
    assert float(high) - mean == pytest.approx(Z95 * error + bias.mean())


# -- a known bound -------------------------------------------------------------------------------


def summed(log_w, **settings):
    weights = LogWeights(np.zeros_like(log_w), log_w)
    return summarise(draws(weights), (reverse_kl, forward_kl), 0.95, **settings)


def test_the_upper_end_reaches_z_plus_three_m_over_n():
    """log(Ẑ + 3M/n), claimed where it is less than half an interval beyond the old end."""
    log_w = np.random.default_rng(0).normal(-0.125, 0.5, size=(500, 1))
    old = summed(log_w).contexts["log_z"][:, 0]
    assert old[4]
    z = np.exp(log_w).mean()
    half = (old[3] - old[2]) / 2
    for log_m, claimed in ((2.5, True), (3.0, False), (math.log(1000.0), False)):
        log_m = max(log_m, float(log_w.max()))
        got = summed(log_w, log_bound=np.array([log_m])).contexts["log_z"][:, 0]
        end = math.log(z + 3 * math.exp(log_m) / 500)
        assert got[3] == pytest.approx(max(end, old[3]))
        assert got[2] == old[2]
        assert bool(got[4]) == (max(end, old[3]) - old[3] < half) == claimed


def test_divergences_reach_their_values_with_what_was_missed():
    """Three more draws of weight M, in as many as were drawn: closed forms of both KLs."""
    log_w = np.random.default_rng(1).normal(-0.125, 0.5, size=(500, 1))
    log_m = math.log(200.0)
    got = summed(log_w, log_bound=np.array([log_m])).contexts
    w = np.concatenate([np.exp(log_w[:, 0]), np.full(3, 200.0)])
    p = w / w.sum()
    reverse = -np.log(w).mean() + math.log(w.mean())
    forward = (p * np.log(w)).sum() - math.log(w.mean())
    assert got["reverse_kl"][3, 0] == pytest.approx(reverse)
    assert got["forward_kl"][3, 0] == pytest.approx(forward)


def test_contexts_share_what_all_their_draws_may_have_missed():
    """The mean over C contexts moves by what one does at 3/(nC): the most that 3/n in all can."""
    log_w = np.random.default_rng(2).normal(-0.125, 0.5, size=(2000, 8))
    log_m = np.full(8, math.log(50.0))
    got = summed(log_w, log_bound=log_m).pooled["log_z"]
    z = np.exp(log_w).mean(axis=0)
    shift = np.log1p(3 * 50.0 / (2000 * 8) / z).max()
    assert got.high == pytest.approx(max(summed(log_w).pooled["log_z"].high, got.value + shift))


def test_a_bound_that_the_draws_exceed_is_refused():
    log_w = np.array([0.0, 1.0, 0.5])
    weights = LogWeights(np.zeros(3), log_w)
    with pytest.raises(ValueError, match=r"exceed it by up to 0\.5 nats"):
        diagnostics.assess(weights, log_bound=0.5)
    sample = WeightedSample(np.arange(3), log_w, log_w, evidence=log_w)
    with pytest.raises(ValueError, match=r"exceed it by up to 1 nats"):
        diagnostics.assess_sample(sample, log_bound=0.0)
    with pytest.raises(ValueError, match="independent proposals"):
        diagnostics.assess_sample(sample._replace(evidence=None), log_bound=2.0)


def test_a_sample_reaches_what_its_proposals_may_have_missed():
    """Means take the least or largest value met; of exact draws only log Ẑ moves."""
    rng = np.random.default_rng(3)
    log_w = rng.normal(-0.125, 0.5, size=1000)
    h = rng.random(1000)
    sample = WeightedSample(h, log_w, log_w, evidence=log_w, log_bound=math.log(1e4))
    got = diagnostics.estimates(diagnostics.assess_sample(sample, features={"h": h}))
    z, p = np.exp(log_w).mean(), np.exp(log_w) / np.exp(log_w).sum()
    share = 30 / (z + 30)
    mean = (p * h).sum()
    assert got["log_z"].high == pytest.approx(math.log(z + 30))
    assert got["target_h"].high == pytest.approx(mean + share * (h.max() - mean))
    assert got["target_h"].low == pytest.approx(mean + share * (h.min() - mean))
    assert not got["target_h"].reliable
    exact = sample._replace(log_weights=np.zeros(1000))
    assert diagnostics.estimates(diagnostics.assess_sample(exact, features={"h": h}))[
        "target_h"
    ].reliable
    calm = diagnostics.estimates(diagnostics.assess_sample(sample, log_bound=3.0))["log_z"]
    assert calm.reliable


def test_targets_know_the_bounds_that_their_makers_know():
    prior = lambda: None
    high = tilt(prior, lambda y: y, 0.25, max_reward=1)
    assert high.log_bound == 4.0
    assert condition(prior, lambda y: y > 0).log_bound == 0.0
    assert condition(high, lambda y: y > 0).log_bound == 4.0
    assert tilt(prior, lambda y: y, 0.25).log_bound is None
    assert tilt(high, lambda y: y, 1.0).log_bound is None
    with pytest.raises(ValueError, match="max_reward"):
        tilt(prior, lambda y: y, 0.25, max_reward=math.inf)


def test_samplers_pass_the_bound_of_their_source_on():
    q = np.array([0.9, 0.07, 0.03])
    source = TableSource(np.arange(3), np.log(q), np.log(q) + np.array([0.0, 0.5, 1.0]), seed=1)
    source.log_bound = 2.0
    assert importance(source, 50).log_bound == 2.0
    assert rejection(source, 10).log_bound == 2.0  # its default, and not 0, which P/q exceeds
    chains = independence_metropolis(source, 20, 10)
    z = np.exp(chains.evidence).mean()
    assert chains.log_bound == 2.0
    np.testing.assert_allclose(chains.total_variation, (1 - z / math.exp(2.0)) ** 10)
    kept = independence_metropolis(source, 20, 10, keep=3, thin=4)
    z = np.exp(kept.evidence).mean()
    np.testing.assert_allclose(kept.total_variation, (1 - z / math.exp(2.0)) ** 2)


def test_reasons_withdraw_every_claim():
    log_w = np.random.default_rng(0).normal(0, 0.1, size=1000)
    weights = LogWeights(np.zeros(1000), log_w)
    tree = diagnostics.assess(weights, withdrawn=["sampler and scorer disagree by 34 nats"])
    assert not any(e.reliable for e in diagnostics.estimates(tree).values())
    assert not tree["diagnostics/contexts"]["log_z"].sel(statistic="reliable").any()
    assert tree["diagnostics"].attrs["notes"].startswith("sampler and scorer disagree by 34 nats")


# -- moments and budgets -------------------------------------------------------------------------


class Table:
    """A categorical law in NumPy, (*contexts, N), as a base of moments."""

    event_shape = ()

    def __init__(self, p):
        self.p = np.asarray(p)
        self.batch_shape = self.p.shape[:-1]

    def log_prob(self, value):
        log_p = np.log(self.p)
        if not self.batch_shape:
            return log_p[value]
        return np.take_along_axis(log_p[None], value[..., None], axis=-1)[..., 0]


def rare(count, n):
    y = (np.arange(n) < count).astype(int)
    return WeightedSample(y, np.zeros(n), np.zeros(n))


@pytest.mark.parametrize(("count", "sure"), [(60, False), (70, True)])
def test_the_ess_of_a_solved_moment_moves_with_the_draws_that_it_was_solved_on(count, sure):
    """A rare feature moved to ½ has ESS 4K of K draws, whose log moves by 1/√K: 240 and 280."""
    target = moment_match(Table([0.998, 0.002]), {"rare": (lambda y: y == 1, 0.5)})
    fit = solve_moments(target, rare(count, 500 * count))
    assert fit.ess_pooled == pytest.approx(4 * count, rel=0.01)
    assert fit.ess_pooled * math.exp(-1.645 / math.sqrt(count)) > 200 or not sure
    assert fit.reliable == sure
    budget = kl_budget(
        Table([0.998, 0.002]), lambda y: 1.0 * y, fit.kl_to_base.item(), rare(count, 500 * count)
    )
    assert budget.reliable or not sure
    # K/n is off by 1/√K of itself, which moves the solved mean by ½·½ of that.
    longer = 1.0
    if sure:
        margin = (math.log(fit.ess_pooled / 200) - 1.645 / math.sqrt(count)) * math.sqrt(count)
        longer = 1 + min(max(1.96 - margin, 0.0), 0.98) / 1.96
        assert longer > 1.2
    assert fit.standard_errors["rare"] == pytest.approx(0.25 / math.sqrt(count) * longer, rel=0.02)


def test_many_contexts_of_few_draws_are_not_reliable():
    """50 × 40: the average has 1,300 effective draws, and each context too few to be unbiased."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(6), size=50)
    phi = np.array([0.0, 1, 2, 3, 4, 8])
    target = moment_match(lambda x: Table(p), {"phi": (lambda y, x: phi[y], 4.5)})

    def fit(n):
        y = (rng.random((n, 50, 1)) > p.cumsum(-1)).sum(-1)
        return solve_moments(target, WeightedSample(y, np.zeros(y.shape), np.zeros(y.shape)), 0)

    few, many = fit(40), fit(4000)
    assert few.ess_pooled > 1000
    assert not few.reliable
    assert any("95% confidence" in note for note in few.notes)
    assert any("bias" in note for note in few.notes)
    assert many.reliable


def test_what_contexts_add_for_being_claims_adds_up_as_errors_do():
    """se 3 and 4 with 1 and 0.5 standard errors more: √((3·1)² + (4·0.5)²)/2 at the mean."""
    column = np.zeros((2, 2))
    m = Moments(
        np.zeros(2), column, np.array([3.0, 4.0]), np.zeros(2), np.zeros(2), (-math.inf, math.inf),
        ("",), np.zeros(2, bool), 0.0, (np.array([1.0, 0.5]), np.zeros(2)),
    )  # fmt: skip
    mean, error, low, high = pooled_interval(m, 0.95)
    assert (mean, error) == (0.0, 2.5)
    assert float(low) == pytest.approx(-Z95 * 2.5 - math.sqrt(13) / 2)
    assert float(high) == pytest.approx(Z95 * 2.5)
