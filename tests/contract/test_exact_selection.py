"""Best-of-n and its relatives: against tuples of draws one by one, and against golden numbers."""

import functools
import itertools
import json
import math
import operator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import chisquare

from infer_align import divergences
from infer_align.exact import RewardLaw, best_of_n, log_rewards, reward_law
from infer_align.exact._rewards import ExactRewards
from infer_align.exact.selection import (
    autoregressive,
    best_of_poisson,
    inference_aware,
    kl_bound,
    kl_estimate,
    log_kl_to_best_of_n,
    sampling_costs,
    soft_best_of_n,
    threshold,
    win_rate_of_best_of_n,
    win_rate_optimum,
)
from infer_align.exact.tilts import beta_for_kl
from tests.exact_zoo import levels, sequences

P3 = [0.5, 0.3, 0.2]
LOGS = [-1.6094379124341003, -1.2039728043259361, -0.6931471805599453]
QS = ["0.1", "0.2", "0.4", "0.3"]
LAW = reward_law(P3, [0, 1, 2])
LONGER = reward_law(P3, [0, 1, 2], 12)
GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "best_of_n.json").read_text(encoding="utf-8")
)
ROWS = [
    pytest.param(case, row, id=f"{case['name']}-{row['m']}-{row['delta']}")
    for case in GOLDEN["cases"]
    for row in case["rows"]
]


def few_levels(probs, rewards=None):
    """The law of listed outcomes."""
    return RewardLaw.of_outcomes(rewards or list(range(len(probs))), np.log(probs))


def random_policies(size, count, seed):
    rng = np.random.default_rng(seed)
    for concentration in rng.choice([0.2, 1.0, 5.0], size=count):
        yield np.log(np.maximum(rng.dirichlet(np.full(size, concentration)), 1e-300))


@pytest.mark.parametrize(("case", "row"), ROWS)
def test_golden_numbers(case, row):
    m, delta = row["m"], Fraction(row["delta"])
    probs, log_n = [float(p) for p in case["p"]], float(delta * m)
    law = reward_law(probs, case["r"], m)
    beta = beta_for_kl(reward_law(probs, case["r"]), float(delta))
    policy, tilt = best_of_n(law, log_n=log_n), law.tilt(beta)
    got = {
        "beta": beta,
        "reward_tilt": law.expected_reward(tilt) / m,
        "reward_bon": law.expected_reward(policy) / m,
        "kl_bon_prior": law.kl_to_prior(policy) / m,
        "kl_bon_tilt": law.divergence(divergences.reverse_kl, policy, tilt) / m,
        "tv": law.divergence(divergences.total_variation, policy, tilt),
        "win_rate": law.win_rate(policy),
    }
    for name, value in got.items():
        assert float(value) == pytest.approx(float(row[name]), rel=1e-10, abs=1e-12), name
    log_kl = log_kl_to_best_of_n(law, tilt, log_n=log_n)
    if float(row["log_kl_tilt_bon"]) < -60:  # rounding leaves no more of a KL
        assert log_kl < -60
    else:
        assert log_kl == pytest.approx(float(row["log_kl_tilt_bon"]), rel=1e-10, abs=1e-6)
    shares = law.token_marginals(policy, len(probs))
    expected = [float(x) for x in row["expected_token_share"]]
    np.testing.assert_allclose(shares, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("rewards", "n"), [([0, 1, 2], 3), ([1, 0, 1], 3), (LOGS, 2), ([5, 5, 5], 4)]
)
def test_best_of_n_is_what_tuples_of_draws_give_with_ties_shared(rewards, n):
    outcomes = sequences(3, 2 if n < 4 else 1)
    length = len(outcomes[0])
    prior = {y: math.prod(P3[j] for j in y) for y in outcomes}
    exact = [Fraction(str(r)) for r in rewards]
    reward = {y: sum(exact[j] for j in y) for y in outcomes}
    chosen = dict.fromkeys(outcomes, 0.0)
    for draws in itertools.product(outcomes, repeat=n):
        best = max(reward[y] for y in draws)
        winners = [y for y in draws if reward[y] == best]
        for y in winners:
            chosen[y] += math.prod(prior[d] for d in draws) / len(winners)
    law = reward_law(P3, rewards, length)
    policy = autoregressive(law, best_of_n(law, n))
    for y in outcomes:
        assert math.exp(policy.log_prob(y)) == pytest.approx(chosen[y], rel=1e-12)
    masses = [
        sum(chosen[y] for y in outcomes if reward[y] == level)
        for level in sorted(set(reward.values()))
    ]
    np.testing.assert_allclose(np.exp(best_of_n(law, n)), masses, rtol=1e-12)


@pytest.mark.parametrize("n", [1e-6, 0.3, 1, 1.7, 40.5])
def test_real_n_interpolates_powers_of_the_cdf(n):
    cdf = np.array([0.5, 0.8, 1.0])
    want = np.diff(cdf**n, prepend=0.0)
    np.testing.assert_allclose(np.exp(best_of_n(LAW, n)), want, rtol=1e-9)
    np.testing.assert_allclose(best_of_n(LAW, log_n=math.log(n)), best_of_n(LAW, n), rtol=1e-12)


def test_astronomical_n_neither_overflows_nor_loses_mass():
    m = 100_000
    law = reward_law(P3, [0, 1, 2], m)
    for delta in (0.2, 1.6):
        policy = best_of_n(law, log_n=m * delta)
        assert float(np.logaddexp.reduce(policy)) == pytest.approx(0.0, abs=1e-11)
        assert m * delta - 4 < float(law.kl_to_prior(policy)) <= m * delta - 1
        tilt = law.tilt(beta_for_kl(law, m * delta))
        assert float(law.expected_reward(policy)) <= float(law.expected_reward(tilt))
        assert math.isfinite(log_kl_to_best_of_n(law, tilt, log_n=m * delta))
    beyond = best_of_n(law, log_n=2.0 * m)
    assert float(law.expected_reward(beyond)) == 2.0 * m
    np.testing.assert_allclose(beyond, law.tilt(0.0), atol=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give n or log_n, one of them"),
        ({"n": 2, "log_n": 1.0}, "give n or log_n, one of them"),
        ({"n": 0}, "needs a finite n > 0, got 0"),
        ({"n": math.nan}, "got nan"),
        ({"n": math.inf}, "got inf"),
        ({"log_n": math.inf}, "log_n must be a finite number, got inf"),
    ],
)
def test_a_number_of_draws_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(LAW, **given)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_soft_best_of_n_is_what_tuples_of_draws_give(n, temperature):
    probs, rewards = [0.1, 0.4, 0.3, 0.2], [-1.0, 0.0, 0.5, 3.0]
    weights = np.exp(np.array(rewards) / temperature)
    want = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        mass = math.prod(probs[j] for j in draws)
        for j in draws:
            want[j] += mass * weights[j] / sum(weights[i] for i in draws)
    law = few_levels(probs, rewards)
    np.testing.assert_allclose(np.exp(soft_best_of_n(law, n, temperature)), want, rtol=1e-12)


def test_soft_best_of_n_runs_from_best_of_n_to_the_tilt():
    cold = soft_best_of_n(LONGER, 6.5, 1e-2)
    np.testing.assert_allclose(np.exp(cold), np.exp(best_of_n(LONGER, 6.5)), rtol=1e-9)
    hot = soft_best_of_n(LONGER, 6, 1e9)
    np.testing.assert_allclose(hot, LONGER.log_prob, atol=1e-7)
    for n in (1e4, 1e6, 1e8):
        gap = divergences.reverse_kl(LONGER.tilt(1.5), soft_best_of_n(LONGER, n, 1.5))
        ratio = np.exp(divergences.pearson_chi2(LONGER.tilt(1.5), LONGER.log_prob))
        assert 0 < float(gap) <= math.log1p(float(ratio) / n)
    many = soft_best_of_n(LONGER, log_n=600.0, temperature=1.5)
    np.testing.assert_allclose(many, LONGER.tilt(1.5), rtol=1e-12, atol=1e-12)
    for arguments in ((0.5, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="n >= 1 and a temperature > 0, got n = "):
            soft_best_of_n(LAW, *arguments)


@pytest.mark.parametrize("mu", [1e-3, 0.7, 5.0, 60.0])
def test_best_of_poisson_is_the_mixture_over_its_number_of_draws(mu):
    log_mass = -mu
    want = np.zeros(len(LONGER))
    for further in range(400):
        want += math.exp(log_mass) * np.exp(best_of_n(LONGER, 1 + further))
        log_mass += math.log(mu) - math.log(further + 1)
    got = best_of_poisson(LONGER, mu)
    np.testing.assert_allclose(np.exp(got), want, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(best_of_poisson(LONGER, log_mu=math.log(mu)), got, rtol=1e-12)


def test_a_threshold_keeps_what_reaches_it():
    np.testing.assert_allclose(np.exp(threshold(LAW, 1)), [0, 0.6, 0.4], rtol=1e-14)
    policy = threshold(LAW, 0.5)
    assert float(LAW.kl_to_prior(policy)) == pytest.approx(-math.log(0.5), rel=1e-14)
    np.testing.assert_allclose(threshold(LAW, -7.0), LAW.log_prob, rtol=1e-14)
    np.testing.assert_allclose(threshold(LAW, 2.0), LAW.tilt(0.0), atol=1e-14)
    with pytest.raises(ValueError, match="the threshold, must be a number, got nan"):
        threshold(LAW, math.nan)
    with pytest.raises(ValueError, match=r"reaches a reward of 2\.5.*highest level is 2"):
        threshold(LAW, 2.5)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_sampling_costs_are_ordered_and_what_they_say(beta):
    costs = sampling_costs(LONGER, beta)
    assert 0 < costs.best_of_n < costs.importance < costs.rejection
    prior, tilt = np.exp(LONGER.log_prob), np.exp(LONGER.tilt(beta))
    accepted = prior @ np.exp((LONGER.rewards - LONGER.rewards[-1]) / beta)
    assert float(costs.rejection) == pytest.approx(-math.log(accepted), rel=1e-12)
    assert float(costs.importance) == pytest.approx(math.log((tilt**2 / prior).sum()), rel=1e-12)
    assert float(costs.best_of_n) == pytest.approx(tilt @ np.log(tilt / prior), rel=1e-12)


@pytest.mark.parametrize("n", [1.0, 1.5, 2, 8, 1000])
def test_the_kl_bound_holds_and_is_attained_without_ties(n):
    for law in (LAW, LONGER, reward_law(P3, LOGS, 5)):
        assert float(law.kl_to_prior(best_of_n(law, n))) <= float(kl_bound(n)) + 1e-12
    assert float(LAW.kl_to_prior(best_of_n(LAW, 1000))) < math.log(5) + 1e-9
    continuum = RewardLaw.of_outcomes(list(range(3000)), np.full(3000, -math.log(3000)))
    exact = float(continuum.kl_to_prior(best_of_n(continuum, n)))
    assert exact == pytest.approx(float(kl_bound(n)), abs=2e-2 if n > 100 else 1e-5)


def test_the_kl_estimate_is_exact_for_one_atom_above_a_continuum():
    uniform = few_levels([0.1] * 10)
    assert float(uniform.kl_to_prior(best_of_n(uniform, 32))) == pytest.approx(2.1493, abs=1e-4)
    assert float(kl_estimate(32, math.log(0.1))) == pytest.approx(2.1634, abs=5e-5)
    assert float(kl_bound(32)) == pytest.approx(2.4970, abs=5e-5)
    atom, k = 0.07, 3000
    probs = np.append(np.full(k, (1 - atom) / k), atom)
    law = RewardLaw.of_outcomes(list(range(k + 1)), np.log(probs))
    for n in (1, 2.5, 6, 20):
        exact = float(law.kl_to_prior(best_of_n(law, n)))
        assert exact == pytest.approx(float(kl_estimate(n, math.log(atom))), abs=2e-5)
    assert float(kl_estimate(5, 0.0)) == 0.0
    np.testing.assert_allclose(kl_estimate(8, np.array([-40.0, -60.0])), kl_bound(8), rtol=1e-12)


def test_the_kl_estimate_of_a_long_sequence_is_the_bound():
    assert float(kl_estimate(8, -1000.0)) == pytest.approx(float(kl_bound(8)), rel=1e-12)


def test_no_policy_of_its_kl_beats_the_win_rate_optimum():
    calibrated = LONGER.calibrated()
    cdf = np.cumsum(np.exp(LONGER.log_prob))
    want = cdf - np.exp(LONGER.log_prob) / 2
    np.testing.assert_allclose(calibrated.rewards, want, atol=1e-14)
    for policy in random_policies(len(LONGER), 100, 3):
        kl = float(LONGER.kl_to_prior(policy))
        best = win_rate_optimum(LONGER, kl)
        assert float(LONGER.win_rate(policy)) <= float(LONGER.win_rate(best)) + 1e-12
        if kl < LONGER.kl_max:
            assert float(LONGER.kl_to_prior(best)) == pytest.approx(kl, rel=1e-10)
    drawn = best_of_n(LONGER, 4)
    best = win_rate_optimum(LONGER, float(LONGER.kl_to_prior(drawn)))
    gap = float(LONGER.win_rate(best) - LONGER.win_rate(drawn))
    assert 0 < gap < 0.01


@pytest.mark.parametrize("n", [1, 2, 3])
def test_win_rate_of_best_of_n_is_that_of_two_tuples_of_draws(n):
    prior, policy = np.array(P3), np.array([0.2, 0.5, 0.3])
    want = 0.0
    for ours in itertools.product(range(3), repeat=n):
        for theirs in itertools.product(range(3), repeat=n):
            mass = math.prod(policy[list(ours)]) * math.prod(prior[list(theirs)])
            margin = max(ours) - max(theirs)
            want += mass * (0.5 + 0.5 * np.sign(margin))
    assert win_rate_of_best_of_n(LAW, np.log(policy), n) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("n", [1.5, 2, 4, 9])
@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("probs", [P3, [0.1, 0.2, 0.3, 0.4]])
def test_inference_aware_optimum_is_that_of_a_brute_search(probs, beta, n):
    law = few_levels(probs)

    def loss(logits):
        policy = logits - np.logaddexp.reduce(logits)
        return beta * float(law.kl_to_prior(policy)) - win_rate_of_best_of_n(law, policy, n)

    best = inference_aware(law, n, beta)
    assert float(np.logaddexp.reduce(best)) == pytest.approx(0.0, abs=1e-12)
    search = minimize(loss, law.log_prob, method="BFGS", options={"gtol": 1e-9, "maxiter": 500})
    assert loss(best) <= search.fun + 1e-10
    found = search.x - np.logaddexp.reduce(search.x)
    np.testing.assert_allclose(np.exp(best), np.exp(found), atol=2e-4)


def test_inference_aware_optimum_of_one_draw_is_the_win_rate_tilt():
    for beta in (0.05, 0.3, 2.0):
        want = LONGER.calibrated().tilt(beta)
        np.testing.assert_allclose(inference_aware(LONGER, 1, beta), want, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"needs n >= 1, got 0\.5"):
        inference_aware(LAW, 0.5, 1.0)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        inference_aware(LAW, 2, 0.0)


def test_inference_aware_numbers_where_rewards_never_tie():
    law = RewardLaw.of_outcomes(list(range(2000)), np.full(2000, -math.log(2000)))
    kl_of = lambda log_beta: float(law.kl_to_prior(inference_aware(law, 4, math.exp(log_beta))))
    beta = math.exp(brentq(lambda x: kl_of(x) - 0.0827, -2.0, 2.0, xtol=1e-6))
    best = inference_aware(law, 4, beta)
    assert win_rate_of_best_of_n(law, best, 4) == pytest.approx(0.68966, abs=1e-4)
    plain = win_rate_optimum(law, 0.0827)
    assert win_rate_of_best_of_n(law, plain, 4) == pytest.approx(0.64347, abs=1e-4)


@pytest.mark.parametrize(("n", "beta"), [(4, 1e-3), (4, 0.02), (50, 0.01)])
def test_inference_aware_optimum_at_low_temperature_beats_every_tilt(n, beta):
    value = lambda policy: (
        win_rate_of_best_of_n(LAW, policy, n) - beta * float(LAW.kl_to_prior(policy))
    )
    best = value(inference_aware(LAW, n, beta))
    for temperature in (0.0, 0.05, 0.2, 0.5, 1.0, 3.0, math.inf):
        assert best >= value(LAW.tilt(temperature)) - 1e-12


def test_inference_aware_optimum_of_a_long_sequence_keeps_every_level():
    law = reward_law(P3, [0, 1, 2], 1000)
    best = inference_aware(law, 4, 1.0)
    assert np.isfinite(best).all()


@pytest.mark.parametrize(
    ("probs", "rewards"),
    [
        (P3, [0, 1, 2]),
        (P3, LOGS),
        (P3, [0.5, 1, 0.5]),
        ([0.4, 0.3, 0.2, 0.1], log_rewards(QS)),
        ([0.5, 0.0, 0.5], [0, 7, 1]),
        (P3, [0.1, 0.2, 0.30000000000000004]),
    ],
    ids=["lattice", "non-lattice", "tied letters", "log-likelihoods", "impossible", "near ties"],
)
@pytest.mark.parametrize("choose", [lambda law: best_of_n(law, 5), lambda law: law.tilt(0.7)])
def test_token_by_token_policies_are_the_prior_reweighted_by_the_level(probs, rewards, choose):
    m, k = 4, len(probs)
    law = reward_law(probs, rewards, m)
    log_policy = choose(law)
    policy = autoregressive(law, log_policy)
    add = operator.mul if isinstance(rewards, ExactRewards) else operator.add
    exact = [Fraction(str(r)) for r in (QS if isinstance(rewards, ExactRewards) else rewards)]
    rank = {level.key: i for i, level in enumerate(levels(probs, exact, m, add=add))}
    joint = {}
    for y in sequences(k, m):
        prior = math.prod(probs[j] for j in y)
        level = rank[functools.reduce(add, [exact[j] for j in y])] if prior else 0
        joint[y] = prior * math.exp(log_policy[level] - law.log_prob[level])
    assert sum(joint.values()) == pytest.approx(1.0, rel=1e-12)
    total = 0.0
    for y, want in joint.items():
        got = math.exp(policy.log_prob(y))
        assert got == pytest.approx(want, rel=1e-10, abs=1e-300)
        total += got
    assert total == pytest.approx(1.0, rel=1e-12)
    for t in range(m):
        for prefix in sequences(k, t):
            mass = sum(p for y, p in joint.items() if y[:t] == prefix)
            if mass == 0:
                with pytest.raises(ValueError, match="has probability 0"):
                    policy.next_log_prob(prefix)
                continue
            following = [
                sum(p for y, p in joint.items() if y[: t + 1] == (*prefix, j)) for j in range(k)
            ]
            got = np.exp(policy.next_log_prob(prefix))
            np.testing.assert_allclose(got, np.array(following) / mass, rtol=1e-10, atol=1e-14)


def test_samples_follow_the_policy_and_a_seed_repeats_them():
    law = reward_law(P3, [0, 1, 2], 2)
    policy = autoregressive(law, best_of_n(law, 4))
    rng = np.random.default_rng(5)
    drawn = [tuple(policy.sample(rng)) for _ in range(3000)]
    outcomes = sequences(3, 2)
    observed = [drawn.count(y) for y in outcomes]
    expected = [3000 * math.exp(policy.log_prob(y)) for y in outcomes]
    assert chisquare(observed, expected).pvalue > 1e-3
    assert tuple(policy.sample(np.random.default_rng(5))) == drawn[0]


def test_token_by_token_policies_refuse_what_they_cannot_know():
    policy = autoregressive(LONGER, best_of_n(LONGER, 4))
    with pytest.raises(ValueError, match="a sequence has 12 tokens, got 1"):
        policy.log_prob([0])
    with pytest.raises(ValueError, match="fewer than the 12 tokens"):
        policy.next_log_prob([0] * 12)
    with pytest.raises(ValueError, match="does not know its sequences exactly"):
        autoregressive(few_levels(P3), np.log(P3))
    none = autoregressive(LAW, LAW.tilt(0.0))
    assert none.log_prob([0]) == -math.inf
    assert none.log_prob([2]) == 0.0


def test_a_policy_is_infinitely_close_to_itself_and_far_in_the_other_direction():
    policy = best_of_n(LONGER, 7)
    assert log_kl_to_best_of_n(LONGER, policy, 7) < -60
    tilt = LONGER.tilt(1.0)
    want = float(divergences.reverse_kl(tilt, policy))
    assert log_kl_to_best_of_n(LONGER, tilt, 7) == pytest.approx(math.log(want), rel=1e-12)
    far = log_kl_to_best_of_n(LONGER, tilt, log_n=1e4)
    # Every level but the highest costs n·(−log F): the lowest weighs most.
    cdf = np.cumsum(np.exp(LONGER.log_prob))[:-1]
    cost = math.log(np.exp(tilt[:-1]) @ -np.log(cdf))
    assert far == pytest.approx(1e4 + cost, rel=1e-12)
