"""`batch_metrics` against enumeration: what each number is, on-policy and off."""

import itertools
import math

import numpy as np
import pytest

from infer_align import diagnostics
from infer_align.diagnostics import batch_metrics
from infer_align.estimators import LogWeights

POLICY = np.log([0.5, 0.3, 0.2])
PROPOSAL = np.log([0.2, 0.2, 0.6])
PRIOR = np.log([0.6, 0.1, 0.3])
POTENTIAL = np.array([2.0, -1.0, 0.5])


def averaged(n, proposal, potential=POTENTIAL):
    """Expected metrics over every batch of n."""
    drawn, total = POLICY if proposal is None else proposal, {}
    for batch in itertools.product(range(3), repeat=n):
        y = np.array(batch)
        weights = LogWeights(
            POLICY[y], PRIOR[y] + potential[y], None if proposal is None else proposal[y]
        )
        mass = math.exp(drawn[y].sum())
        for name, value in batch_metrics(weights, PRIOR[y], potential[y]).items():
            total[name] = total.get(name, 0.0) + mass * value
    return total


@pytest.mark.parametrize("proposal", [None, PROPOSAL], ids=["on", "off"])
@pytest.mark.parametrize("n", [1, 4])
def test_expectations_under_the_policy_are_unbiased(n, proposal):
    """One convention: neither the log-potential nor the KL is self-normalised, at any n."""
    found = averaged(n, proposal)
    p = np.exp(POLICY)
    assert found["log_potential"] == pytest.approx(p @ POTENTIAL, abs=1e-12)
    assert found["kl_prior"] == pytest.approx(p @ (POLICY - PRIOR), abs=1e-12)


def test_the_log_potential_is_no_reward():
    """A constant reward of 1 at β = 1/4 is a log-potential of 4, and called so."""
    prior, four = np.log([0.5, 0.5]), np.full(2, 4.0)
    found = batch_metrics(LogWeights(prior, prior + four), prior, four)
    assert found["log_potential"] == 4.0
    assert "reward" not in found


def test_on_policy_it_is_the_mean_over_accepted_outcomes():
    potential = np.array([3.0, -math.inf, 1.0, -math.inf])
    flat = np.log(np.full(4, 0.25))
    found = batch_metrics(LogWeights(flat, flat + potential), flat, potential)
    assert found["log_potential"] == 2.0
    assert found["acceptance"] == 0.5


def test_off_policy_the_accepted_share_is_the_policys():
    """φ = 2 and 0 are accepted, each from the other: 1 + (1.5·2 − 2·2)/4 over 1 − .5/4."""
    v, potential = np.array([1.5, 0.5, 0.0, 2.0]), np.array([2.0, -math.inf, 1.0, 0.0])
    with np.errstate(divide="ignore"):
        policy = np.log(v)
    weights = LogWeights(policy, policy + potential, np.zeros(4))
    found = batch_metrics(weights, policy, potential)
    assert found["log_potential"] == pytest.approx(1 - (1.0 / 4) / (1 - 0.5 / 4))
    assert found["acceptance"] == 0.5  # of the draws: π(y) = 0 rejects none, but P = 0 there


def test_nothing_accepted_has_no_log_potential():
    flat, never = np.log(np.full(2, 0.5)), np.full(2, -math.inf)
    assert math.isnan(batch_metrics(LogWeights(flat, never), flat, never)["log_potential"])


def test_an_axis_says_what_its_points_are():
    """The log-potential is not E[reward]; a feature has its own name."""
    y = np.random.default_rng(0).choice(2, size=4000, p=[0.2, 0.8])
    policy, prior = np.log([0.2, 0.8])[y], np.log([0.5, 0.5])[y]
    tree = diagnostics.assess(
        LogWeights(policy, prior + 4.0 * y), log_prior=prior, features={"reward": 1.0 * y}
    )
    matplotlib = pytest.importorskip("matplotlib.figure")
    labels = []
    for options in ({}, {"scale": 0.25}, {"feature": "reward"}):
        points = diagnostics.frontier_points({"policy": tree}, **options)
        axis = matplotlib.Figure().subplots()
        labels.append(diagnostics.plot_frontier(points, axis).get_ylabel())
    assert labels == ["E[log-potential]", "0.25 E[log-potential]", "E[reward]"]
    mixed = [
        *diagnostics.frontier_points({"a": tree}),
        *diagnostics.frontier_points({"b": tree}, feature="reward"),
    ]
    with pytest.raises(ValueError, match="different quantities"):
        diagnostics.plot_frontier(mixed, matplotlib.Figure().subplots())
