"""What `assess_sample` promises: the values of `assess` where both apply, clusters, odd samples."""

import math

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align import WeightedSample, diagnostics
from infer_align.diagnostics import Estimate
from infer_align.diagnostics._units import by_number
from infer_align.diagnostics._weighted_estimates import expectation, log_z, weighted, with_log_z
from infer_align.estimators import LogWeights

Q = np.array([0.1, 0.1, 0.2, 0.25, 0.2, 0.15])
POLICY = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
DENSITY = 3.0 * np.array([0.1, 0.05, 0.25, 0.3, 0.2, 0.1])  # Z = 3
TARGET = DENSITY / 3.0


def importance(n=1000, contexts=(), *, q=Q, density=DENSITY, seed=0):
    y = np.random.default_rng(seed).choice(6, size=(n, *contexts), p=q)
    with np.errstate(divide="ignore"):
        log_target = np.log(density)[y]
    log_w = log_target - np.log(q)[y]
    return WeightedSample(y, log_w, log_target, evidence=log_w, calls=n, method="importance"), y


def values(sample, **kwargs):
    return diagnostics.estimates(diagnostics.assess_sample(sample, **kwargs))


def notes(sample, **kwargs):
    return diagnostics.assess_sample(sample, **kwargs)["diagnostics"].attrs["notes"]


def assert_equal(a, b, names, rtol=1e-9):
    for name in names:
        np.testing.assert_allclose(tuple(a[name]), tuple(b[name]), rtol=rtol, err_msg=name)


@pytest.mark.parametrize("rejected", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("contexts", [(), (3,), (2, 2)])
def test_importance_samples_from_the_policy_equal_assess(contexts, rejected):
    """Every statistic of log Z, KL(p‖π), means, acceptance, ESS and k̂, per context and pooled."""
    density = np.where(np.arange(6) == 2, 0.0, DENSITY) if rejected else DENSITY
    sample, y = importance(400, contexts, density=density)
    feature = {"y": y * 1.0}
    here = diagnostics.assess_sample(sample, log_policy=np.log(Q)[y], features=feature)
    there = diagnostics.assess(LogWeights(np.log(Q)[y], sample.log_target), features=feature)
    names = ("log_z", "forward_kl", "target_y", "acceptance")
    # The second-order term of a divergence is, by `assess`, a difference of f'.
    assert_equal(diagnostics.estimates(here), diagnostics.estimates(there), names, rtol=1e-6)
    for group in ("diagnostics", "diagnostics/contexts"):
        a, b = here[group].to_dataset(), there[group].to_dataset()
        for name in (*names, "ess", "ess_low", "pareto_khat", "ess_per_draw"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=f"{group} {name}")
    assert float(here["diagnostics"]["ess_min"]) == float(there["diagnostics"]["ess_min"])


def test_off_policy_differs_from_assess_by_the_normalisation_of_the_policy():
    sample, y = importance(500)
    got = values(sample, log_policy=np.log(POLICY)[y])
    weights = LogWeights(np.log(POLICY)[y], sample.log_target, np.log(Q)[y])
    there = diagnostics.estimates(diagnostics.assess(weights))
    gap = math.log(np.mean((POLICY / Q)[y]))
    assert there["forward_kl"].value == pytest.approx(got["forward_kl"].value + gap)
    assert_equal(got, there, ["log_z"])


def test_directions_and_entropy_against_exact_values():
    """A swapped direction or a lost log Z would show."""
    sample, y = importance(60_000)
    got = values(sample, log_policy=np.log(POLICY)[y], log_prior=np.log(Q)[y])
    truth = {
        "log_z": math.log(3),
        "forward_kl": (TARGET * np.log(TARGET / POLICY)).sum(),
        "kl_target_prior": (TARGET * np.log(TARGET / Q)).sum(),
        "entropy_target": -(TARGET * np.log(TARGET)).sum(),
    }
    for name, value in truth.items():
        assert abs(got[name].value - value) < 5 * got[name].se < 0.05, name
        assert got[name].reliable, name


def clustered(log_w, cluster):
    return WeightedSample(
        None, log_w, log_w, evidence=log_w, cluster=cluster, evidence_cluster=cluster
    )


def test_singleton_clusters_are_independent_draws():
    sample, y = importance(300, (2,))
    alone = np.broadcast_to(np.arange(300)[:, None], y.shape)
    kinds = {"log_policy": np.log(POLICY)[y], "features": {"y": y * 1.0}}
    a = values(sample._replace(cluster=alone, evidence_cluster=alone[::-1][::-1]), **kinds)
    b = values(sample, **kinds)
    assert_equal(a, b, ("log_z", "forward_kl", "entropy_target", "target_y"))


def test_copies_in_a_cluster_are_one_draw():
    """Each draw five times over, as one cluster, is worth what it is once."""
    sample, y = importance(250, (2,))
    five = [np.repeat(x, 5, axis=0) for x in (sample.log_weights, sample.log_target, y)]
    cluster = np.repeat(np.broadcast_to(np.arange(250)[:, None], y.shape), 5, axis=0)
    copies = WeightedSample(five[2], five[0], five[1], five[0], cluster, cluster)
    a = diagnostics.assess_sample(copies, log_policy=np.log(POLICY)[five[2]])
    b = diagnostics.assess_sample(sample, log_policy=np.log(POLICY)[y])
    names = ("log_z", "forward_kl", "entropy_target")
    assert_equal(diagnostics.estimates(a), diagnostics.estimates(b), names)
    for name in ("ess", "ess_low", "pareto_khat"):
        assert float(a["diagnostics"][name]) == pytest.approx(float(b["diagnostics"][name]))
        assert float(a["diagnostics"][name + "_evidence"]) == float(a["diagnostics"][name])
    assert "dependent within clusters" in a["diagnostics"].attrs["notes"]


def test_influences_are_those_of_the_jackknife_over_clusters():
    """φ_c = (G − 1)(θ − θ without c) up to 1/G: free of formulas."""
    rng = np.random.default_rng(3)
    cluster = np.repeat(np.arange(200), 3)[:, None]
    log_w = np.repeat(0.4 * rng.normal(size=200), 3)[:, None] + 0.3 * rng.normal(size=(600, 1))
    h = rng.normal(size=(600, 1)) + log_w
    limits = (-math.inf, math.inf)
    estimators = (
        lambda w, h: log_z(w),
        expectation,
        lambda w, h: with_log_z(w, h, -1.0, limits),
    )
    for estimator in estimators:
        full = estimator(weighted(clustered(log_w, cluster)), h)
        without = []
        for c in range(200):
            kept = cluster[:, 0] != c
            numbers = np.unique(cluster[kept], return_inverse=True)[1].reshape(-1, 1)
            left = weighted(clustered(log_w[kept], numbers))
            without.append(estimator(left, h[kept]).value[0])
        jackknife = 199 * (full.value[0] - np.array(without))
        scale = np.abs(jackknife).max()
        np.testing.assert_allclose(full.influence[:, 0], jackknife, atol=0.02 * scale)


def test_a_dead_ancestor_is_a_unit_of_weight_zero():
    """Chan and Lai: Var log Ẑ of N eves is Σ U_c² − 1/N, also if most have no descendants."""
    eve = np.array([0, 0, 3, 3, 3, 7, 7, 7])[:, None]
    w = np.ones((8, 1))
    got = log_z(weighted(clustered(np.log(w), eve)))
    shares = np.array([2, 3, 3]) / 8
    expected = (np.square(shares).sum() - 1 / 8) * 8 / 7
    assert got.se[0] ** 2 == pytest.approx(expected)
    assert by_number(eve)[0].count.tolist() == [8]
    assert by_number(np.array([[5], [90]]))[0].count.tolist() == [2]  # labels


def test_contexts_with_their_own_clusters_equal_a_loop():
    rng = np.random.default_rng(5)
    log_w = rng.normal(size=(60, 3))
    cluster = np.sort(rng.integers(0, 60, size=(60, 3)), axis=0)
    tree = diagnostics.assess_sample(clustered(log_w, cluster), log_policy=-np.ones((60, 3)))
    for c in range(3):
        alone = diagnostics.assess_sample(
            clustered(log_w[:, c], cluster[:, c]), log_policy=-np.ones(60)
        )
        for name in ("log_z", "forward_kl", "entropy_target", "ess", "pareto_khat"):
            np.testing.assert_allclose(
                tree["diagnostics/contexts"][name].isel(context=c),
                alone["diagnostics"][name],
                rtol=1e-9,
                err_msg=name,
            )


def rejection(n=300, seed=0, bound=2.0):
    """Exact draws of p by rejection from Q, the evidence of all proposals, and their rows."""
    rng = np.random.default_rng(seed)
    y = rng.choice(6, size=4 * n, p=Q)
    ratio = (DENSITY / Q)[y]
    accepted = np.flatnonzero(rng.random(4 * n) < ratio / (3 * bound))[:n]
    sample = WeightedSample(
        y[accepted], np.zeros(n), np.log(DENSITY)[y[accepted]], evidence=np.log(ratio)
    )
    return sample, y[accepted], accepted


def test_rejection_samples_have_two_kinds_of_draws():
    sample, y, _ = rejection()
    tree = diagnostics.assess_sample(sample, log_policy=np.log(POLICY)[y], features={"y": y * 1.0})
    got = diagnostics.estimates(tree)
    mean = got["target_y"]
    assert mean.value == pytest.approx(y.mean())
    assert mean.se == pytest.approx(y.std(ddof=1) / math.sqrt(300))
    ratio = np.exp(sample.evidence)
    assert got["log_z"].value == pytest.approx(math.log(ratio.mean()))
    assert got["log_z"].se == pytest.approx(ratio.std(ddof=1) / ratio.mean() / math.sqrt(1200))
    data = tree["diagnostics"]
    assert float(data["ess"]) == pytest.approx(300)
    assert 300 < float(data["ess_evidence"]) < 1200
    # Not matched: the standard errors are added.
    surprise = np.log(DENSITY / POLICY)[y]
    alone = surprise.std(ddof=1) / math.sqrt(300)
    assert got["forward_kl"].se == pytest.approx(alone + got["log_z"].se)
    assert "added" in data.attrs["notes"]


def test_matched_rejection_samples_have_the_covariance():
    sample, y, rows = rejection()
    joined = sample._replace(cluster=rows, evidence_cluster=np.arange(1200))
    bounded = values(sample, log_policy=np.log(POLICY)[y])
    exact = values(joined, log_policy=np.log(POLICY)[y])
    assert exact["forward_kl"].value == pytest.approx(bounded["forward_kl"].value)
    assert exact["forward_kl"].se < bounded["forward_kl"].se
    assert "added" not in notes(joined)


def test_chains_say_nothing_of_z_but_of_means():
    rng = np.random.default_rng(0)
    chain = np.repeat(np.arange(250), 4)
    y = np.repeat(rng.choice(6, size=250, p=TARGET), 4)
    sample = WeightedSample(y, np.zeros(1000), np.log(DENSITY)[y], cluster=chain)
    tree = diagnostics.assess_sample(sample, log_policy=np.log(POLICY)[y], features={"y": y * 1.0})
    got = diagnostics.estimates(tree)
    for name in ("log_z", "forward_kl", "entropy_target"):
        assert math.isnan(got[name].value), name
        assert (got[name].se, got[name].reliable) == (math.inf, False), name
    assert got["target_y"].reliable
    assert got["target_y"].se == pytest.approx(y[::4].std(ddof=1) / math.sqrt(250))
    assert float(tree["diagnostics"]["ess"]) == pytest.approx(250)
    assert "no evidence of Z" in tree["diagnostics"].attrs["notes"]
    assert "undefined" in diagnostics.table(tree)
    few = sample._replace(cluster=chain // 50)
    assert not values(few, features={"y": y * 1.0})["target_y"].reliable


def test_nothing_accepted_gives_a_stated_bound():
    sample, y = importance(1000, (2,))
    log_w = sample.log_weights.copy()
    log_w[:, 0] = -np.inf
    none = sample._replace(log_weights=log_w, evidence=log_w, log_target=log_w)
    tree = diagnostics.assess_sample(none, log_policy=np.log(POLICY)[y], features={"y": y * 1.0})
    first = tree["diagnostics/contexts"].isel(context=0)
    got = Estimate(*first["log_z"].values)
    assert (got.value, got.low, got.reliable) == (-math.inf, -math.inf, 0)
    assert got.high == pytest.approx(math.log(-math.expm1(math.log(0.05) / 1000)))
    assert math.isnan(first["target_y"].values[0])
    forward = Estimate(*first["forward_kl"].values)
    assert (forward.low, forward.high, forward.reliable) == (0.0, math.inf, 0)
    assert float(first["ess"]) == 0
    assert "no accepted draw" in tree["diagnostics"].attrs["notes"]
    assert "unreliable, below" in diagnostics.table(tree)
    cluster = np.tile(np.arange(500)[:, None], (2, 2))
    dependent = none._replace(cluster=cluster, evidence_cluster=cluster)
    bounded = diagnostics.estimates(diagnostics.assess_sample(dependent))["log_z"]
    assert (bounded.value, bounded.high, bounded.reliable) == (-math.inf, math.inf, False)
    assert "dependent proposals give no bound" in notes(dependent)


def test_rejection_that_accepts_nothing_still_estimates_z():
    sample, y, _ = rejection()
    none = sample._replace(log_weights=np.full(300, -np.inf))
    got = values(none, log_policy=np.log(POLICY)[y], features={"y": y * 1.0})
    assert got["log_z"].reliable
    assert math.isnan(got["target_y"].value)
    assert not got["forward_kl"].reliable


def test_equal_tied_and_single_weights():
    equal = WeightedSample(None, np.zeros(300), np.zeros(300), evidence=np.zeros(300))
    tree = diagnostics.assess_sample(equal)
    assert diagnostics.estimates(tree)["log_z"] == Estimate(0.0, 0.0, 0.0, 0.0, True)
    assert float(tree["diagnostics"]["pareto_khat"]) == -math.inf
    assert float(tree["diagnostics"]["ess"]) == 300
    tied = np.where(np.arange(1000) < 300, 1.0, 0.0)
    text = notes(WeightedSample(None, tied, tied, evidence=tied))
    assert "tie" in text
    one = WeightedSample(None, np.zeros(1), np.full(1, 2.0), evidence=np.full(1, 2.0))
    tree = diagnostics.assess_sample(one, features={"y": np.ones(1)})
    got = diagnostics.estimates(tree)
    assert (got["log_z"].value, got["log_z"].se, got["log_z"].reliable) == (2.0, math.inf, False)
    assert (got["target_y"].value, got["target_y"].se) == (1.0, math.inf)
    assert "single independent" in tree["diagnostics"].attrs["notes"]


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_khat_of_weights_with_known_tail(k):
    log_w = k * np.random.default_rng(7).exponential(size=20_000)
    tree = diagnostics.assess_sample(WeightedSample(None, log_w, log_w, evidence=log_w))
    assert float(tree["diagnostics"]["pareto_khat"]) == pytest.approx(k, abs=0.2)
    assert diagnostics.estimates(tree)["log_z"].reliable == (k < 0.5)
    pairs = np.repeat(np.arange(10_000), 2)
    halves = diagnostics.assess_sample(clustered(np.repeat(log_w[::2], 2), pairs))
    assert float(halves["diagnostics"]["pareto_khat_evidence"]) == pytest.approx(k, abs=0.2)


def test_a_policy_that_misses_the_target_is_infinitely_far_with_certainty():
    sample, y = importance(400)
    log_policy = np.where(y == 3, -np.inf, np.log(POLICY)[y])
    tree = diagnostics.assess_sample(sample, log_policy=log_policy)
    got = diagnostics.estimates(tree)["forward_kl"]
    assert got == Estimate(math.inf, 0.0, math.inf, math.inf, True)
    assert "forward_kl = inf is certain" in tree["diagnostics"].attrs["notes"]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rejected=st.floats(0, 1),
    kind=st.sampled_from(["importance", "clusters", "other evidence", "no evidence"]),
    constant=st.floats(-300, 300),
)
def test_no_nan_but_where_undefined_and_constants_shift_log_z_only(seed, rejected, kind, constant):
    rng = np.random.default_rng(seed)
    log_w = np.where(rng.random((40, 2)) < rejected, -np.inf, 3 * rng.normal(size=(40, 2)))
    log_target = np.where(log_w > -np.inf, rng.normal(size=(40, 2)), -np.inf)
    cluster = rng.integers(0, 40, size=(40, 2))
    evidence = {"other evidence": log_w[::-1][:30], "no evidence": None}.get(kind, log_w)
    numbers = cluster if kind == "clusters" else None
    sample = WeightedSample(None, log_w, log_target, evidence, numbers, numbers)
    kinds = {"log_policy": -np.ones((40, 2)), "features": {"y": rng.normal(size=(40, 2))}}
    got = values(sample, **kinds)
    outcomes = np.isfinite(log_w).any(axis=0).all()
    for name, e in got.items():
        assert not any(math.isnan(x) for x in e[1:]), name
        assert not e.reliable or name == "acceptance"
        if outcomes and kind != "no evidence":
            assert not math.isnan(e.value), name
    moved = None if evidence is None else evidence + constant
    shifted = values(sample._replace(log_target=log_target + constant, evidence=moved), **kinds)
    if outcomes and kind != "no evidence" and np.isfinite(got["log_z"].value):
        change = shifted["log_z"].value - got["log_z"].value
        assert change == pytest.approx(constant, abs=1e-9)
        for name in ("forward_kl", "entropy_target"):
            assert shifted[name].value == pytest.approx(got[name].value, abs=1e-8), name
            assert shifted[name].se == pytest.approx(got[name].se, rel=1e-6, abs=1e-9), name


def test_the_tree_keeps_the_sample_and_survives_a_netcdf_file(tmp_path):
    sample, y, rows = rejection()
    sample = sample._replace(cluster=rows, evidence_cluster=np.arange(1200), method="rejection")
    tree = diagnostics.assess_sample(
        sample, log_policy=np.log(POLICY)[y], features={"y": y * 1.0}, contexts=["prompt"]
    )
    assert tree["sample_stats"].sizes == {"chain": 1, "draw": 300, "context": 1}
    assert tree["evidence"].sizes["draw"] == 1200
    np.testing.assert_array_equal(tree["evidence"]["log_evidence"][0, :, 0], sample.evidence)
    np.testing.assert_array_equal(tree["outcomes/y"][0, :, 0], y)
    assert tree["diagnostics"].attrs["method"] == "rejection"
    diagnostics.save(tree, tmp_path / "sample.nc")
    with xarray.open_datatree(tmp_path / "sample.nc", engine="h5netcdf") as loaded:
        assert diagnostics.table(loaded) == diagnostics.table(tree)
    assert "ess (Z)" in diagnostics.table(tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_weights": np.zeros((0,))}, "at least one of them"),
        ({"log_target": np.zeros(3)}, r"log_target has shape \(3,\); needed is \(4,\)"),
        ({"log_target": np.full(4, np.nan)}, "log_target has 4 NaN and 0 infinite"),
        ({"log_weights": np.full(4, np.inf)}, "log_weights has 0 NaN and 4 infinite"),
        ({"log_target": np.full(4, -np.inf)}, "4 of 4 outcomes have a positive weight"),
        ({"evidence": np.zeros(0)}, "at least one row"),
        ({"evidence": np.zeros((4, 2))}, r"evidence has shape \(4, 2\)"),
        ({"cluster": np.zeros(4)}, "needed are integers"),
        ({"evidence_cluster": np.zeros(3, dtype=int)}, r"evidence_cluster has shape \(3,\)"),
    ],
)
def test_bad_samples_are_errors(change, message):
    good = WeightedSample(None, np.zeros(4), np.zeros(4), evidence=np.zeros(4))
    with pytest.raises(ValueError, match=message):
        diagnostics.assess_sample(good._replace(**change))


def test_bad_arguments_are_errors():
    good = WeightedSample(None, np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="log_policy has shape"):
        diagnostics.assess_sample(good, log_policy=np.zeros(3))
    with pytest.raises(ValueError, match="feature 'y' has 1 NaN"):
        diagnostics.assess_sample(good, features={"y": np.array([1.0, np.nan, 0, 0])})
    with pytest.raises(ValueError, match="between 0 and 1"):
        diagnostics.assess_sample(good, level=95.0)
    with pytest.raises(ValueError, match="2 labels"):
        diagnostics.assess_sample(good, contexts=["a", "b"])
