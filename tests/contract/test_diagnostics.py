"""What `assess`, `compare` and `table` promise, on draws from three array libraries."""

import math

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_align import diagnostics, divergences
from infer_align.diagnostics import Estimate
from infer_align.diagnostics._draws import draws
from infer_align.diagnostics._estimates import moments
from infer_align.estimators import LogWeights
from tests.libraries import jnp, torch

POLICY = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
DENSITY = 3.0 * np.array([0.1, 0.05, 0.25, 0.3, 0.2, 0.1])  # Z = 3
PROPOSAL = np.array([0.1, 0.1, 0.2, 0.25, 0.2, 0.15])
FOUR = diagnostics._tree.DIVERGENCES


def drawn(n=1000, contexts=(), *, seed=0, off_policy=False, density=DENSITY):
    q = PROPOSAL if off_policy else POLICY
    y = np.random.default_rng(seed).choice(6, size=(n, *contexts), p=q)
    with np.errstate(divide="ignore"):
        log_target = np.log(density)[y]
    return LogWeights(np.log(POLICY)[y], log_target, np.log(q)[y] if off_policy else None), y


def values(weights, **kwargs):
    return diagnostics.estimates(diagnostics.assess(weights, **kwargs))


def assert_same(a, b, **kwargs):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **kwargs)


@pytest.mark.parametrize("off_policy", [False, True])
def test_three_libraries_agree(off_policy):
    weights, _ = drawn(400, (2,), off_policy=off_policy)
    reference = values(weights)
    for asarray in (jnp.asarray, lambda x: torch.tensor(x, requires_grad=True)):
        moved = LogWeights(*(None if x is None else asarray(x) for x in weights))
        assert_same(values(moved), reference, rtol=1e-6)


def test_half_precision_is_read_as_it_is():
    weights, _ = drawn(300)
    half = LogWeights(*(torch.tensor(x).bfloat16() for x in weights[:2]))
    exact = LogWeights(*(x.double().numpy() for x in half[:2]))
    assert_same(values(half), values(exact))


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("divergence", divergences.ALL, ids=lambda d: d.name)
def test_estimates_are_the_plug_in_divergences(divergence, off_policy):
    """A direction, a lost log Z or a swapped q and π would show here."""
    weights, y = drawn(500, off_policy=off_policy)
    q = PROPOSAL if off_policy else POLICY
    share = np.bincount(y, minlength=6) / 500
    policy, target = share * POLICY / q, share * DENSITY / q
    exact = divergence(np.log(policy / policy.sum()), np.log(target / target.sum()))
    got = values(weights, divergences=[divergence])[divergence.name]
    assert got.value == pytest.approx(float(exact), rel=1e-9)
    assert values(weights)["log_z"].value == pytest.approx(math.log(target.sum()), rel=1e-9)


def test_expectations_are_weighted_means():
    weights, y = drawn(500, off_policy=True)
    log_prior = np.log(np.full(6, 1 / 6))[y]
    got = values(weights, log_prior=log_prior, features={"y": y.astype(float)})
    v, w = (POLICY / PROPOSAL)[y], (DENSITY / PROPOSAL)[y]
    assert got["policy_y"].value == pytest.approx(np.average(y, weights=v))
    assert got["target_y"].value == pytest.approx(np.average(y, weights=w))
    surprise = -np.log(POLICY)[y]
    assert got["entropy"].value == pytest.approx(np.average(surprise, weights=v))
    assert got["kl_prior"].value == pytest.approx(np.average(-surprise - log_prior, weights=v))


@pytest.mark.parametrize("off_policy", [False, True])
def test_influences_are_those_of_the_jackknife(off_policy):
    """φ_i = (n − 1)(θ − θ without i) up to 1/n: a formula-free check of every standard error."""
    n = 600
    weights, y = drawn(n, off_policy=off_policy)
    extra = {"log_prior": np.log(np.full(6, 1 / 6))[y], "features": {"y": y.astype(float)}}
    full = moments(draws(weights, **extra), divergences.ALL)
    without = np.array([np.delete(np.arange(n), i) for i in range(n)]).T  # (n − 1, n)
    left = LogWeights(*(None if x is None else x[without] for x in weights))
    extra = {
        "log_prior": extra["log_prior"][without],
        "features": {"y": y[without].astype(float)},
    }
    for name, jackknife in moments(draws(left, **extra), divergences.ALL).items():
        expected = (n - 1) * (full[name].value - jackknife.value)
        scale = np.abs(full[name].influence).max()
        np.testing.assert_allclose(
            full[name].influence[:, 0], expected, atol=0.02 * scale, err_msg=name
        )


def test_on_policy_is_off_policy_from_the_policy():
    weights, _ = drawn(400)
    same = weights._replace(proposal=weights.policy)
    assert_same(values(weights), values(same), rtol=1e-12)


@pytest.mark.parametrize("off_policy", [False, True])
def test_contexts_equal_a_loop(off_policy):
    weights, y = drawn(500, (2, 3), off_policy=off_policy)
    feature = {"y": y.astype(float)}
    tree = diagnostics.assess(weights, features=feature)
    per_context = tree["diagnostics/contexts"].to_dataset()
    assert per_context.sizes["context"] == 6
    alone = []
    for c in range(6):
        i, j = divmod(c, 3)
        one = LogWeights(*(None if x is None else x[:, i, j] for x in weights))
        alone.append(diagnostics.assess(one, features={"y": feature["y"][:, i, j]}))
        single = alone[-1]["diagnostics"].to_dataset()
        for name, value in per_context.isel(context=c).data_vars.items():
            np.testing.assert_allclose(value, single[name], rtol=1e-9, err_msg=name)
    pooled = diagnostics.estimates(tree)
    for name in ("log_z", "forward_kl", "target_y"):
        each = [diagnostics.estimates(t)[name] for t in alone]
        assert pooled[name].value == pytest.approx(np.mean([e.value for e in each]))
        assert pooled[name].se == pytest.approx(np.sqrt(sum(e.se**2 for e in each)) / 6)
    data = tree["diagnostics"]
    ess = [float(t["diagnostics"]["ess"]) for t in alone]
    assert float(data["ess"]) == pytest.approx(sum(ess))
    assert float(data["ess_min"]) == pytest.approx(min(ess))


@settings(max_examples=25, deadline=None)
@given(
    constant=st.floats(-500, 500),
    seed=st.integers(0, 2**32 - 1),
    off_policy=st.booleans(),
    rejected=st.booleans(),
)
def test_a_constant_added_to_the_target_shifts_log_z_only(constant, seed, off_policy, rejected):
    density = DENSITY * (np.arange(6) != 5) if rejected else DENSITY
    weights, _ = drawn(300, seed=seed, off_policy=off_policy, density=density)
    a = values(weights)
    b = values(weights._replace(target=weights.target + constant))
    log_z = b.pop("log_z")
    shifted = a.pop("log_z")
    assert log_z.value == pytest.approx(shifted.value + constant, abs=1e-9)
    assert log_z.se == pytest.approx(shifted.se, rel=1e-6)
    assert_same(a, b, rtol=1e-6, atol=1e-9)


def test_the_order_of_the_draws_does_not_matter():
    weights, _ = drawn(300, off_policy=True)
    order = np.random.default_rng(1).permutation(300)
    assert_same(values(weights), values(LogWeights(*(x[order] for x in weights[:3]))), rtol=1e-9)


def test_a_rejected_draw_makes_reverse_kl_certainly_infinite_and_nothing_nan():
    density = DENSITY * (np.arange(6) < 4)
    weights, _ = drawn(2000, density=density)
    tree = diagnostics.assess(weights)
    got = diagnostics.estimates(tree)
    assert got["reverse_kl"] == Estimate(math.inf, 0.0, math.inf, math.inf, True)
    assert not any(math.isnan(x) for e in got.values() for x in e)
    p = density / density.sum()
    forward = (p[:4] * np.log(p[:4] / POLICY[:4])).sum()
    assert abs(got["forward_kl"].value - forward) < 5 * got["forward_kl"].se
    variation = 0.5 * np.abs(p - POLICY).sum()
    assert abs(got["total_variation"].value - variation) < 5 * got["total_variation"].se
    assert got["acceptance"].low < 0.5 < got["acceptance"].high
    assert "reverse_kl = inf is certain" in tree["diagnostics"].attrs["notes"]
    assert "certain" in diagnostics.table(tree)


def test_a_very_small_density_is_not_zero():
    log_target = np.where(np.arange(400) % 2 == 0, 0.0, -2000.0)
    got = values(LogWeights(np.full(400, -1.0), log_target))
    assert got["reverse_kl"].value == pytest.approx(1000 - math.log(2))
    assert got["forward_kl"].value == pytest.approx(math.log(2))
    assert not any(math.isnan(x) for e in got.values() for x in e)


@pytest.mark.parametrize("contexts", [(), (2,)])
def test_no_accepted_draw_gives_a_stated_bound(contexts):
    weights, y = drawn(1000, contexts)
    target = np.full(y.shape, -np.inf)
    if contexts:
        target[:, 1] = weights.target[:, 1]
    tree = diagnostics.assess(weights._replace(target=target), features={"y": y.astype(float)})
    first = tree["diagnostics/contexts"].isel(context=0)
    log_z = Estimate(*first["log_z"].values)
    assert log_z.value == -math.inf
    assert log_z.low == -math.inf
    assert log_z.high == pytest.approx(math.log(3 / 1000), abs=0.01)
    assert not log_z.reliable
    forward = Estimate(*first["forward_kl"].values)
    assert (forward.value, forward.low, forward.high) == (math.inf, 0.0, math.inf)
    assert not forward.reliable
    variation = Estimate(*first["total_variation"].values)
    assert (variation.value, variation.low, variation.high) == (1.0, 0.0, 1.0)
    assert math.isnan(first["target_y"].values[0])
    assert first["ess"] == 0
    pooled = diagnostics.estimates(tree)
    assert pooled["log_z"].value == -math.inf
    assert pooled["log_z"].high < math.inf
    assert not pooled["log_z"].reliable
    assert pooled["policy_y"].reliable
    assert "no accepted draw" in tree["diagnostics"].attrs["notes"]
    assert "undefined" in diagnostics.table(tree)


def test_mass_outside_the_prior_costs_an_infinite_kl_and_an_overflow_claims_nothing():
    weights, y = drawn(300)
    log_prior = np.where(y == 0, -np.inf, 0.0)
    cost = values(weights, log_prior=log_prior)["kl_prior"]
    assert cost == Estimate(math.inf, 0.0, math.inf, math.inf, True)
    target = np.where(y == 0, -5000.0, weights.target)
    chi2 = values(weights._replace(target=target), divergences=[divergences.pearson_chi2])
    overflow = chi2["pearson_chi2"]
    assert overflow == Estimate(math.inf, math.inf, 0.0, math.inf, False)


def test_few_draws_and_small_ess_are_unreliable_and_say_what_to_do():
    weights, _ = drawn(150)
    tree = diagnostics.assess(weights)
    assert not any(e.reliable for name, e in diagnostics.estimates(tree).items() if "kl" in name)
    assert "draw about" in tree["diagnostics"].attrs["notes"]
    text = diagnostics.table(tree)
    assert "unreliable" in text
    assert "nan" not in text


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_khat_of_weights_with_known_tail(k):
    exponential = np.random.default_rng(7).exponential(size=20_000)
    assert diagnostics.pareto_khat(k * exponential) == pytest.approx(k, abs=0.2)


def test_khat_is_that_of_the_accepted_draws():
    exponential = 0.5 * np.random.default_rng(7).exponential(size=20_000)
    padded = np.concatenate([exponential, np.full(99 * 20_000, -np.inf)])
    assert diagnostics.pareto_khat(padded) == diagnostics.pareto_khat(exponential)
    assert diagnostics.pareto_khat(padded) == pytest.approx(0.5, abs=0.2)


def test_khat_without_a_tail():
    khat = diagnostics.pareto_khat
    rng = np.random.default_rng(0)
    assert khat(np.zeros(1000)) == -math.inf  # all tie
    assert khat(np.where(np.arange(1000) < 10, 1.0, 0.0)) == -math.inf  # two values
    assert khat(np.log(rng.choice(6, size=1000, p=POLICY) + 1.0)) == -math.inf
    assert khat(np.full(100, -np.inf)) == math.inf
    assert khat(rng.normal(size=10)) == math.inf
    assert khat(np.zeros(10)) == -math.inf
    assert khat(1000 * rng.exponential(size=1000)) == math.inf
    mixed = np.concatenate([np.zeros(990), 1 + 2 * rng.exponential(size=60)])
    assert 0.7 < khat(mixed) < 4  # a heavy tail over a tied bulk is seen


def test_ties_are_told():
    weights, _ = drawn(1000)
    tree = diagnostics.assess(weights)
    assert tree["diagnostics"]["pareto_khat"] == -math.inf
    assert "tie" in tree["diagnostics"].attrs["notes"]


def test_ess_counts_rejected_draws_as_draws():
    log_weights = np.log(np.array([1.0, 3.0, 2.0, 2.0]))
    padded = np.concatenate([log_weights, np.full(4, -np.inf)])
    assert diagnostics.kish_ess(log_weights) == pytest.approx(64 / 18)
    assert diagnostics.kish_ess(padded) == pytest.approx(64 / 18)
    weights = LogWeights(np.full(8, -1.0), padded)
    assert diagnostics.assess(weights)["diagnostics"]["ess_per_draw"] == pytest.approx(64 / 18 / 8)


def test_the_tree_keeps_the_draws_and_survives_a_netcdf_file(tmp_path):
    weights, y = drawn(300, (2,), off_policy=True)
    tokens = np.stack([y, 5 - y, y], axis=-1)
    tree = diagnostics.assess(
        weights,
        log_prior=weights.policy,
        features={"y": y.astype(float)},
        contexts=["The movie was", "I think"],
        outcomes=tokens,
        max_sample_score_difference=0.01,
    )
    stats = tree["sample_stats"]
    assert stats["log_policy"].dims == ("chain", "draw", "context")
    assert stats.sizes == {"chain": 1, "draw": 300, "context": 2}
    np.testing.assert_array_equal(stats["log_weight"][0], weights.target - weights.proposal)
    np.testing.assert_array_equal(tree["outcomes/y"][0], tokens)
    diagnostics.save(tree, tmp_path / "run.nc")
    with xarray.open_datatree(tmp_path / "run.nc", engine="h5netcdf") as loaded:
        assert list(loaded["features"]["context"].values) == ["The movie was", "I think"]
        assert diagnostics.estimates(loaded) == diagnostics.estimates(tree)
        assert diagnostics.table(loaded) == diagnostics.table(tree)


def test_context_ids_label_the_contexts():
    weights, _ = drawn(300, (2,))
    tree = diagnostics.assess(weights._replace(context=np.array([7, 3])))
    assert tree["diagnostics/contexts"]["context"].values.tolist() == [7, 3]
    with pytest.raises(ValueError, match="3 labels and the log-weights 2 contexts"):
        diagnostics.assess(weights, contexts=["a", "b", "c"])


def test_table_shows_before_and_after_side_by_side():
    before = diagnostics.assess(drawn(600, seed=1)[0], max_sample_score_difference=1e-6)
    after = diagnostics.assess(drawn(100, seed=2, off_policy=True)[0])
    lines = diagnostics.table(after, before=before).splitlines()
    assert lines[0].split() == ["before", "after", "95%", "interval"]
    row = next(line for line in lines if line.startswith("forward_kl"))
    assert row.count("[") == 1
    assert row.endswith("unreliable")
    assert any(line.startswith("- after: the effective sample size") for line in lines)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": np.nan}, r"log policy has 3 NaN among its 12 entries"),
        ({"target": np.nan}, r"log target has 3 NaN"),
        ({"proposal": np.nan}, r"log proposal has 3 NaN"),
        ({"target": np.inf}, r"log target has 3 infinite entries among 12"),
        ({"proposal": -np.inf}, r"3 of 12 outcomes have probability 0 under the proposal"),
    ],
)
def test_bad_values_are_named_and_counted(change, message):
    weights, _ = drawn(6, (2,), off_policy=True)
    [(name, bad)] = change.items()
    array = getattr(weights, name).copy()
    array[:3, 0] = bad
    with pytest.raises(ValueError, match=message):
        diagnostics.assess(weights._replace(**{name: array}))


def test_bad_shapes_and_options_are_errors():
    weights, _ = drawn(6)
    with pytest.raises(ValueError, match="at least 2 outcomes on axis 0"):
        diagnostics.assess(drawn(1)[0])
    with pytest.raises(ValueError, match=r"log target has shape \(5,\)"):
        diagnostics.assess(weights._replace(target=weights.target[:5]))
    with pytest.raises(ValueError, match=r"feature 'y' has shape \(6, 4\)"):
        diagnostics.assess(weights, features={"y": np.zeros((6, 4))})
    with pytest.raises(ValueError, match="feature 'y' has 6 NaN"):
        diagnostics.assess(weights, features={"y": np.full(6, np.nan)})
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        diagnostics.assess(weights, level=95.0)
    with pytest.raises(ValueError, match=r"outcomes 'y' have shape \(4, 3\)"):
        diagnostics.assess(weights, outcomes=np.zeros((4, 3)))
    impossible = np.where(np.arange(6) == 0, -np.inf, weights.policy)
    with pytest.raises(ValueError, match="1 of 6 outcomes have probability 0 under the policy"):
        diagnostics.assess(weights._replace(policy=impossible))
    with pytest.raises(ValueError, match="probability 0 to every draw in 1 of 1 contexts"):
        diagnostics.assess(LogWeights(np.full(6, -np.inf), weights.target, proposal=weights.policy))


def nearer(n, strength, *, seed, contexts=(2,)):
    """Draws of a policy between POLICY (0) and the target (1)."""
    policy = (1 - strength) * POLICY + strength * DENSITY / 3
    y = np.random.default_rng(seed).choice(6, size=(n, *contexts), p=policy)
    return LogWeights(np.log(policy)[y], np.log(DENSITY)[y])


def test_compare_sees_an_improvement_and_its_opposite():
    far, near = nearer(800, 0.0, seed=1), nearer(900, 0.8, seed=2)
    change = diagnostics.compare(far, near)
    for name in ("reverse_kl", "forward_kl"):
        assert change[name].reliable
        assert change[name].high < 0
        a, b = values(far)[name], values(near)[name]
        assert change[name].value == pytest.approx(b.value - a.value)
        assert change[name].se == pytest.approx(math.hypot(a.se, b.se))
    back = diagnostics.compare(near, far)
    assert back["forward_kl"].low == pytest.approx(-change["forward_kl"].high)
    assert abs(change["log_z"].value) < 4 * change["log_z"].se


def test_compare_reaches_what_either_side_may_have_missed():
    """log Ẑ grows to log(Ẑ + 3M/n): the change falls by that of before, and rises by after's."""
    far, near = nearer(800, 0.0, seed=1, contexts=()), nearer(900, 0.8, seed=2, contexts=())
    plain, log_m = diagnostics.compare(far, near)["log_z"], math.log(40.0)
    grown = [
        math.log1p(3 * 40.0 / len(w.policy) / np.exp(w.target - w.policy).mean())
        for w in (far, near)
    ]
    for bounds, low, high in (
        ((log_m, None), plain.value - grown[0], plain.high),
        ((None, log_m), plain.low, plain.value + grown[1]),
        ((log_m, log_m), plain.value - grown[0], plain.value + grown[1]),
    ):
        wide = diagnostics.compare(far, near, log_bounds=bounds)["log_z"]
        assert (wide.low, wide.high) == pytest.approx((low, high), rel=1e-12)
        assert low <= plain.low
        assert high >= plain.high
        back = diagnostics.compare(near, far, log_bounds=bounds[::-1])["log_z"]
        assert (back.low, back.high) == pytest.approx((-high, -low), rel=1e-9)
    tight = diagnostics.compare(far, near, log_bounds=(math.log(6.1), None))
    assert tight["forward_kl"].reliable
    loose = diagnostics.compare(far, near, log_bounds=(math.log(1e4), None))
    assert not any(change.reliable for change in loose.values())
    for wrong in (3.0, (1.0,), None):
        with pytest.raises(TypeError, match="log_bounds is a pair"):
            getattr(diagnostics.compare, "__wrapped__", diagnostics.compare)(
                far, near, log_bounds=wrong
            )


def test_compare_claims_nothing_where_it_cannot():
    far, near = nearer(800, 0.0, seed=1), nearer(900, 0.8, seed=2)
    few = diagnostics.compare(far, nearer(50, 0.8, seed=3))
    assert not few["forward_kl"].reliable
    other = diagnostics.compare(far, near._replace(target=near.target + 1))
    assert not any(e.reliable for e in other.values())
    rejecting = [
        w._replace(target=np.where(np.arange(len(w.policy))[:, None] == 0, -np.inf, w.target))
        for w in (far, near)
    ]
    both_infinite = diagnostics.compare(*rejecting)["reverse_kl"]
    assert (both_infinite.low, both_infinite.high) == (-math.inf, math.inf)
    assert not both_infinite.reliable
    with pytest.raises(ValueError, match="cannot be paired"):
        diagnostics.compare(far, nearer(800, 0.5, seed=4, contexts=(3,)))
