"""The intervals of `assess` against exact values: they cover where they are claimed.

Replications run side by side on the context axis; fixed seeds. Without Pareto k̂ where thousands
of fits would be needed and the tail is known.
"""

import math

import numpy as np
import pytest

from infer_align.diagnostics import compare, pareto_khat
from infer_align.diagnostics._draws import draws
from infer_align.diagnostics._summary import summarise
from infer_align.diagnostics._tree import DIVERGENCES
from infer_align.divergences import forward_kl, reverse_kl
from infer_align.estimators import LogWeights
from infer_align.spaces import Space

POLICY = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
DENSITY = 3.0 * np.array([0.1, 0.05, 0.25, 0.3, 0.2, 0.1])
PROPOSAL = np.array([0.1, 0.1, 0.2, 0.25, 0.2, 0.15])

# 3^8 sequences under an uneven prior, with one random reward each: log-weights that hardly tie.
SEQUENCES = Space.product(*(3,) * 8)
PRIOR = np.random.default_rng(6).dirichlet(np.ones(len(SEQUENCES)))
REWARD = np.random.default_rng(5).normal(size=len(SEQUENCES))


def replications(policy, density, proposal, n, count, *, seed):
    """Independent batches of n draws, one a context."""
    q = policy if proposal is None else proposal
    y = np.random.default_rng(seed).choice(len(q), size=(n, count), p=q)
    with np.errstate(divide="ignore"):
        log_policy, log_density, log_q = np.log(policy), np.log(density), np.log(q)
    return LogWeights(log_policy[y], log_density[y], None if proposal is None else log_q[y]), y


def truths(policy, density):
    """Exact values from the enumerated space."""
    space = Space(np.arange(len(policy)))
    with np.errstate(divide="ignore"):
        log_policy, log_density = np.log(policy), np.log(density)
    log_target = space.log_target(log_density)
    out = {d.name: float(space.divergence(d, log_policy, log_target)) for d in DIVERGENCES}
    out["log_z"] = float(space.log_z(log_density))
    out["entropy"] = -float(space.expectation(log_policy, log_policy))
    out["policy_y"] = float(space.expectation(np.arange(len(policy)) * 1.0, log_policy))
    out["target_y"] = float(space.expectation(np.arange(len(policy)) * 1.0, log_target))
    return out


@pytest.mark.parametrize("proposal", [None, PROPOSAL], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("rejected", [False, True], ids=["soft", "hard"])
def test_estimates_are_within_five_standard_errors_of_the_truth(proposal, rejected):
    density = np.where(np.arange(6) == 2, 0.0, DENSITY) if rejected else DENSITY
    weights, y = replications(POLICY, density, proposal, 20_000, 1, seed=3)
    summary = summarise(draws(weights, features={"y": y * 1.0}), DIVERGENCES, 0.95)
    for name, truth in truths(POLICY, density).items():
        estimate = summary.pooled[name]
        assert estimate.reliable, name
        if math.isinf(truth):
            assert estimate.value == estimate.low == truth
        else:
            assert estimate.se > 0
            assert abs(estimate.value - truth) < 5 * estimate.se, name


def covered(policy, density, proposal, n, count, *, seed):
    """Share of intervals that hold the truth, by name, among those that are claimed."""
    weights, y = replications(policy, density, proposal, n, count, seed=seed)
    summary = summarise(draws(weights, features={"y": y * 1.0}), DIVERGENCES, 0.95)
    shares = {}
    for name, truth in truths(policy, density).items():
        _, _, low, high, reliable = summary.contexts[name]
        assert reliable.mean() > 0.95, name
        shares[name] = np.mean(((low <= truth) & (truth <= high))[reliable > 0])
    return shares


CASES = {
    "six outcomes, on-policy": (POLICY, DENSITY, None, 400),
    "six outcomes, off-policy": (POLICY, DENSITY, PROPOSAL, 400),
    "sequences, ESS 400": (PRIOR, PRIOR * np.exp(REWARD), None, 1000),
    "sequences, half target": (
        PRIOR,
        PRIOR * np.exp(REWARD),
        PRIOR * (0.5 + 0.5 * np.exp(REWARD) / (PRIOR * np.exp(REWARD)).sum()),
        500,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_claimed_intervals_cover(case):
    shares = covered(*CASES[case], 600, seed=11)
    for name, share in shares.items():
        assert 0.92 <= share <= 0.98, (name, share)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_claimed_intervals_cover_in_many_replications(case):
    shares = np.array([list(covered(*CASES[case], 500, seed=s).values()) for s in range(4)])
    for share in shares.mean(axis=0):
        assert 0.93 <= share <= 0.975, shares.mean(axis=0)


def test_a_peaked_target_is_flagged():
    """β = 0.25 and n = 1000: an ESS of about 3, where naive intervals cover 60%."""
    weights, _ = replications(PRIOR, PRIOR * np.exp(REWARD / 0.25), None, 1000, 200, seed=2)
    summary = summarise(draws(weights), DIVERGENCES, 0.95)
    for name in ("log_z", "reverse_kl", "forward_kl", "total_variation", "jensen_shannon"):
        assert summary.contexts[name][4].mean() <= 0.05, name
    assert summary.contexts["entropy"][4].all()  # needs no weights
    assert any("too heavy a tail" in note for note in summary.notes)
    assert any("effective sample size" in note for note in summary.notes)


def test_standard_errors_are_the_spread_of_the_estimates():
    """Variance beside the mean: a lost covariance with log Ẑ would show here."""
    for case in ("six outcomes, on-policy", "six outcomes, off-policy"):
        policy, density, proposal, n = CASES[case]
        weights, y = replications(policy, density, proposal, n, 4000, seed=8)
        moved = draws(weights, log_prior=np.log(PROPOSAL)[y], features={"y": y * 1.0})
        summary = summarise(moved, DIVERGENCES, 0.95, khat=False)
        for name, (value, se, *_) in summary.contexts.items():
            if name != "acceptance":
                ratio = math.sqrt((se**2).mean()) / value.std()
                assert ratio == pytest.approx(1, abs=0.06), (case, name)


def test_pooled_intervals_cover():
    """Eight unlike contexts, pooled; 250 replications of 400 draws each."""
    rng = np.random.default_rng(4)
    tables = [(rng.dirichlet(np.full(6, 3.0)), rng.dirichlet(np.full(6, 3.0))) for _ in range(8)]
    exact = np.mean([truths(*table)["forward_kl"] for table in tables])
    batches = [
        replications(*table, None, 400, 250, seed=20 + i)[0] for i, table in enumerate(tables)
    ]
    hits = 0
    for r in range(250):
        policy, target = (np.stack([b[k][:, r] for b in batches], axis=1) for k in (0, 1))
        estimate = summarise(
            draws(LogWeights(policy, target)), (forward_kl,), 0.95, khat=False
        ).pooled["forward_kl"]
        hits += estimate.low <= exact <= estimate.high
    assert 0.91 <= hits / 250 <= 0.985


def test_differences_cover_and_have_power():
    """`compare` on 512 draws before and after, as the demo uses it."""
    density = PRIOR * np.exp(REWARD)
    noise = np.random.default_rng(7).normal(size=len(PRIOR))
    fitted = PRIOR * np.exp(0.6 * REWARD + 0.3 * noise)
    fitted /= fitted.sum()
    exact = {
        d: truths(fitted, density)[d] - truths(PRIOR, density)[d]
        for d in ("reverse_kl", "forward_kl")
    }
    before, _ = replications(PRIOR, density, None, 800, 200, seed=31)
    after, _ = replications(fitted, density, None, 800, 200, seed=32)
    hits, closer = dict.fromkeys(exact, 0), 0
    for r in range(200):
        change = compare(
            LogWeights(before.policy[:, r], before.target[:, r]),
            LogWeights(after.policy[:, r], after.target[:, r]),
            divergences=(reverse_kl, forward_kl),
        )
        for name, truth in exact.items():
            hits[name] += change[name].low <= truth <= change[name].high
        closer += all(change[name].high < 0 for name in exact)
    assert all(0.90 <= hit / 200 <= 0.99 for hit in hits.values()), hits
    assert closer > 190


def test_khat_of_ties_over_a_heavy_tail_is_that_of_the_tail():
    rng = np.random.default_rng(12)
    excess = rng.exponential(size=300)
    tied = np.concatenate([np.zeros(19_700), np.log1p(np.expm1(0.9 * excess) / 0.9)])
    assert pareto_khat(tied) == pytest.approx(0.9, abs=0.3)
