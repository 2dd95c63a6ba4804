"""Moment constraints and KL budgets on samples: the dual, its standard errors, its refusals."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from scipy.optimize import minimize

import infer_align as ia
from infer_align import WeightedSample, exact, match_moments, moment_match, solve_moments, tilt
from infer_align.targets import Moment, check_provides, kl_budget, temper, unconstrained

N = 12
RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(N))
A, B = RNG.random(N) < 0.5, RNG.random(N) < 0.5
V = RNG.normal(size=N)
PHI = np.stack([A, B, V], axis=1).astype(float)
MEANS = np.array([0.6, 0.45, 0.2])
FEATURES = {
    "a": (lambda y: A[y], 0.6), "b": (lambda y: B[y], 0.45), "v": (lambda y: V[y], 0.2)
}  # fmt: skip


class Categorical:
    """A categorical distribution in NumPy, with contexts on the leading axes of p."""

    has_enumerate_support = True
    event_shape = ()

    def __init__(self, p: Any) -> None:
        self.p = np.asarray(p, dtype=float)
        self.batch_shape = self.p.shape[:-1]

    def log_prob(self, value: Any) -> Any:
        with np.errstate(divide="ignore"):
            log_p = np.log(self.p)
        if not self.batch_shape:
            return log_p[value]
        return np.take_along_axis(log_p[None], value[..., None], axis=-1)[..., 0]

    def enumerate_support(self, expand: bool = True) -> Any:
        return np.arange(self.p.shape[-1])


TARGET = moment_match(Categorical(P), FEATURES)


def law(target: ia.Target, n: int = N) -> np.ndarray:
    """Its probabilities."""
    p = np.exp(target.log_density(np.arange(n)))
    return p / p.sum()


def drawn(rng: np.random.Generator, n: int, p: np.ndarray = P) -> WeightedSample:
    return WeightedSample(rng.choice(len(p), n, p=p), np.zeros(n), np.zeros(n))


def by_hand(y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """λ by a general minimiser of the dual."""
    value = lambda m: np.log((weight * np.exp(PHI[y] @ m)).sum()) - m @ MEANS
    return minimize(value, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x


def test_the_dual_is_solved_to_1e_10() -> None:
    """Multipliers of a general minimiser, and moments to the tolerance."""
    rng = np.random.default_rng(1)
    q = rng.dirichlet(np.ones(N))
    y = rng.choice(N, 500, p=q)
    log_weights = np.log(P / q)[y]
    fit = solve_moments(TARGET, WeightedSample(y, log_weights + 7.0, log_weights))
    assert max(abs(v - m) for v, m in zip(fit.achieved.values(), MEANS, strict=True)) < 1e-10
    found = np.array(list(fit.multipliers.values()))
    np.testing.assert_allclose(found, by_hand(y, np.exp(log_weights)), atol=1e-5)
    p = law(fit.target)
    np.testing.assert_allclose(p, P * np.exp(PHI @ found) / (P * np.exp(PHI @ found)).sum())
    w = np.exp(log_weights + PHI[y] @ found)
    np.testing.assert_allclose(fit.ess_pooled, w.sum() ** 2 / (w**2).sum())
    base, w = np.exp(log_weights) / np.exp(log_weights).sum(), w / w.sum()
    np.testing.assert_allclose(fit.kl_to_base, (w * np.log(w / base)).sum())


def test_features_are_evaluated_once() -> None:
    """Whatever the number of Newton steps."""
    calls = []

    def feature(y: Any) -> Any:
        calls.append(len(y))
        return V[y]

    target = moment_match(Categorical(P), {"v": (feature, 0.9)})
    assert solve_moments(target, drawn(np.random.default_rng(2), 300)).iterations > 3
    assert calls == [300]


@pytest.mark.parametrize("method", ["prior", "importance", "clusters"])
def test_standard_errors_by_replication(method: str) -> None:
    """True moments, and λ, are off by one standard error: the mean square z is 1."""
    rng, runs = np.random.default_rng(3), 128
    q = rng.dirichlet(np.full(N, 3.0))
    truth = np.array(list(exact.match_moments(TARGET).multipliers.values()))
    z = []
    for _ in range(runs):
        sample = drawn(rng, 400)
        if method == "importance":
            y = rng.choice(N, 900, p=q)
            sample = WeightedSample(y, np.log(P / q)[y], np.log(P)[y])
        if method == "clusters":  # each draw comes four times
            y = np.repeat(sample.outcomes, 4)
            sample = WeightedSample(y, np.zeros(1600), np.zeros(1600), cluster=np.arange(1600) // 4)
        fit = solve_moments(TARGET, sample)
        se = np.array(list(fit.standard_errors.values()))
        errors = np.array(list(fit.multiplier_errors.values()))
        found = np.array(list(fit.multipliers.values()))
        z.append([(law(fit.target) @ PHI - MEANS) / se, (found - truth) / errors])
        if method == "clusters":
            assert fit.ess_pooled < 450
    # Mean of 128 squares of unit normals: standard deviation 1/8.
    np.testing.assert_allclose(np.square(z).mean(axis=0), 1.0, atol=5 / 8)


def test_one_multiplier_for_all_contexts() -> None:
    """The mean over contexts is matched; each has its own Z; weights of contexts count."""
    table = np.random.default_rng(4).dirichlet(np.ones(N), size=3)
    target = moment_match(
        lambda x: Categorical(table[x]),
        [Moment("a", lambda y, x: A[y], 0.6), Moment("v", lambda y, x: V[y] + x, 1.2)],
    )
    x = np.arange(3)
    for weights in (None, [1.0, 2.0, 5.0]):
        fit = exact.match_moments(target, x, context_weights=weights)
        outcomes = np.broadcast_to(np.arange(N)[:, None], (N, 3))
        p = np.exp(fit.target.log_density(outcomes, x))
        p = p / p.sum(axis=0)
        share = np.full(3, 1 / 3) if weights is None else np.array(weights) / 8
        np.testing.assert_allclose((p * A[:, None]).sum(axis=0) @ share, 0.6)
        np.testing.assert_allclose((p * (V[:, None] + x)).sum(axis=0) @ share, 1.2)
        np.testing.assert_allclose(fit.kl_to_base, (p * np.log(p / table.T)).sum(axis=0))


def test_rejected_draws_count_for_nothing() -> None:
    """-inf weights, where features may be anything, NaN included."""
    rng = np.random.default_rng(5)
    sample = drawn(rng, 300)
    rejected = np.arange(300) % 3 == 0
    feature = lambda y: np.where(rejected, np.nan, V[y])
    weights = np.where(rejected, -math.inf, 0.0)
    half = moment_match(Categorical(P), {"v": (feature, 0.2)})
    fit = solve_moments(half, sample._replace(log_weights=weights))
    rest = moment_match(Categorical(P), {"v": (lambda y: V[y], 0.2)})
    kept = solve_moments(rest, WeightedSample(sample.outcomes[~rejected], *[np.zeros(200)] * 2))
    np.testing.assert_allclose(fit.multipliers["v"], kept.multipliers["v"])
    np.testing.assert_allclose(fit.standard_errors["v"], kept.standard_errors["v"], rtol=1e-2)


def test_dependent_features_get_the_shortest_multipliers() -> None:
    """A feature and its double: λ is along (1, 2), and a constant feature's is 0."""
    moments = {
        "a": (lambda y: A[y], 0.6), "twice": (lambda y: 2.0 * A[y] + 1, 2.2),
        "one": (lambda y: 0.0 * y + 1, 1.0),
    }  # fmt: skip
    fit = exact.match_moments(moment_match(Categorical(P), moments))
    alone = exact.match_moments(moment_match(Categorical(P), {"a": (lambda y: A[y], 0.6)}))
    np.testing.assert_allclose(
        list(fit.multipliers.values()), alone.multipliers["a"] * np.array([0.2, 0.4, 0]), atol=1e-9
    )


INFEASIBLE = {
    "never": ({"n": (lambda y: 0.0 * y, 0.1)}, r"'n' shall be 0.1.*never occurs.*all 12 outcomes"),
    "constant": ({"c": (lambda y: 0.0 * y + 3, 0.1)}, r"'c' .* is 3 in all 12 outcomes"),
    "range": ({"v": (lambda y: V[y], 9.0)}, r"'v' shall be 9, and its feature runs from"),
    "end": ({"a": (lambda y: A[y], 1.0)}, r"'a' shall be 1, the greatest.* instead.*value\)$"),
    "least": ({"a": (lambda y: A[y], 0.0)}, r"the least value.*condition on it instead"),
    "contradiction": (
        {"v": (lambda y: V[y], 0.1), "a": (lambda y: A[y], 0.6), "not": (lambda y: ~A[y], 0.6)},
        r"moments a = 0.6, not = 0.6 contradict each other",
    ),
    "edge": (
        {"v": (lambda y: V[y], 0.1), "a": FEATURES["b"], "ab": (lambda y: A[y] & B[y], 0.45)},
        r"moments a = 0.45, ab = 0.45 can only be had together .* condition on those outcomes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INFEASIBLE)
def test_infeasible_means_are_explained(case: str) -> None:
    """The features at fault are named, and no others."""
    moments, message = INFEASIBLE[case]
    with pytest.raises(ValueError, match=message) as found:
        exact.match_moments(moment_match(Categorical(P), moments))
    if case in ("contradiction", "edge"):
        assert "v =" not in str(found.value)


def test_what_can_be_had_by_contexts_together() -> None:
    """The mean over contexts: one may be out of its own reach, all together not."""
    table = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    make = lambda mean: moment_match(
        lambda x: Categorical(table[x]), {"y": (lambda y, x: 1.0 * y, mean)}
    )
    fit = exact.match_moments(make(1.2), np.arange(2))
    np.testing.assert_allclose(fit.achieved["y"], 1.2)
    with pytest.raises(ValueError, match=r"runs from 0.5 to 1.5"):
        exact.match_moments(make(1.7), np.arange(2))


def test_rare_but_possible_means_are_found() -> None:
    """A mean near its end has a large multiplier, and is no edge."""
    for mean in (1e-6, 1 - 1e-6):
        fit = exact.match_moments(moment_match(Categorical(P), {"a": (lambda y: A[y], mean)}))
        odds = math.log(mean / (1 - mean)) - math.log(P[A].sum() / P[~A].sum())
        np.testing.assert_allclose(fit.multipliers["a"], odds, rtol=1e-4)


def test_no_accepted_draw_and_few_effective_draws() -> None:
    """The first is an error, the second is flagged."""
    sample = drawn(np.random.default_rng(6), 30)
    assert not solve_moments(TARGET, sample).reliable
    assert "effective sample size" in solve_moments(TARGET, sample).notes[0]
    with pytest.raises(ValueError, match="no accepted draws"):
        solve_moments(TARGET, sample._replace(log_weights=np.full(30, -math.inf)))
    chains = drawn(np.random.default_rng(6), 4000)._replace(cluster=np.arange(4000) % 4)
    assert not solve_moments(TARGET, chains).reliable


SHARE = np.array([0.9, 0.05, 0.03, 0.015, 0.005])
X, Y = np.array([0.0, 0, 1, 1, 0]), np.array([0.0, 1, 0, 1, 3])
FAR = moment_match(Categorical(SHARE), {"x": (lambda y: X[y], 0.5), "y": (lambda y: Y[y], 1.0)})


def redraw(rng: np.random.Generator) -> Any:
    return lambda target, n: drawn(rng, n, law(target, 5))


def test_rounds_are_pooled_with_honest_errors() -> None:
    """Draws of the base and of two solved targets: the mean square z of the moments is 1."""
    rng, runs, z = np.random.default_rng(7), 64, []
    for _ in range(runs):
        fit = match_moments(FAR, redraw(rng), n=100, rounds=3, ess_min=1e9)
        moments = law(fit.target, 5) @ np.stack([X, Y], axis=1)
        z.append((moments - [0.5, 1.0]) / np.array(list(fit.standard_errors.values())))
    np.testing.assert_allclose(np.square(z).mean(axis=0), 1.0, atol=0.88)


def test_drawing_again_ends_when_the_weights_are_even() -> None:
    """One round of the base is not enough, a second from the solved target is."""
    laws = []

    def draw(target: ia.Target, n: int) -> WeightedSample:
        laws.append((target, n))
        return redraw(np.random.default_rng(8))(target, n)

    fit = match_moments(FAR, draw, n=600)
    assert fit.reliable
    assert [n for _, n in laws] == [600, 1200]
    np.testing.assert_allclose(law(laws[0][0], 5), SHARE)
    assert abs(law(laws[1][0], 5) @ X - 0.5) < 0.2
    truth = exact.match_moments(FAR).multipliers
    for name, value in fit.multipliers.items():
        assert abs(value - truth[name]) < 5 * fit.multiplier_errors[name]
    short = match_moments(FAR, redraw(np.random.default_rng(8)), n=600, rounds=2, ess_min=5000)
    assert not short.reliable


def test_rounds_that_never_see_a_feature_say_so() -> None:
    """After the last round, with the reason of the single solution."""
    never = moment_match(Categorical(P), {"n": (lambda y: y > 50, 0.2)})
    draw = lambda target, n: drawn(np.random.default_rng(9), n)
    with pytest.raises(ValueError, match=r"after 2 rounds: moment 'n' .* never occurs"):
        match_moments(never, draw, n=50, rounds=2)


@pytest.mark.parametrize("library", ["numpyro", "torch"])
def test_three_array_libraries_agree(library: str) -> None:
    """Multipliers, and densities in the library of the prior."""
    want = exact.match_moments(TARGET)
    if library == "numpyro":
        prior, xp = ndist.CategoricalProbs(jnp.asarray(P)), jnp
    else:
        prior, xp = pdist.Categorical(torch.as_tensor(P)), torch
    a, b, v = (xp.asarray(x) for x in (A, B, V))
    moments = {"a": (lambda y: a[y], 0.6), "b": (lambda y: b[y], 0.45), "v": (lambda y: v[y], 0.2)}
    target = moment_match(prior, moments)
    fit = exact.match_moments(target)
    np.testing.assert_allclose(
        list(fit.multipliers.values()), list(want.multipliers.values()), atol=1e-9
    )
    density = fit.target.log_density(xp.arange(N))
    assert isinstance(density, type(xp.arange(N)))
    np.testing.assert_allclose(np.asarray(density), want.target.log_density(np.arange(N)))
    base = unconstrained(target).log_density(xp.arange(N))
    np.testing.assert_allclose(np.asarray(base), np.log(P))


def test_declarations_refuse_what_is_not_said() -> None:
    """Unsolved densities, wrong names, nothing declared, moments under a tilt."""
    with pytest.raises(ValueError, match=r"declares the moments a, b, v.*solve_moments\(target"):
        TARGET.log_density(np.arange(N))
    with pytest.raises(ValueError, match="one to each, and to no other"):
        moment_match(Categorical(P), FEATURES, multipliers={"a": 1.0})
    with pytest.raises(ValueError, match="at least one moment"):
        moment_match(Categorical(P))
    with pytest.raises(ValueError, match="must be finite"):
        moment_match(Categorical(P), {"a": (lambda y: A[y], math.nan)})
    sample = drawn(np.random.default_rng(10), 50)
    with pytest.raises(ValueError, match="declares no moments"):
        solve_moments(tilt(Categorical(P), lambda y: V[y], 1.0), sample)
    with pytest.raises(ValueError, match="have multipliers already"):
        solve_moments(exact.match_moments(TARGET).target, sample)
    wide = moment_match(Categorical(P), {"v": (lambda y: np.stack([y, y], -1), 1.0)})
    with pytest.raises(ValueError, match=r"'v' has shape \(50, 2\)"):
        solve_moments(wide, sample)
    with pytest.raises(ValueError, match="not finite on accepted"):
        solve_moments(moment_match(Categorical(P), {"v": (lambda y: y - math.inf, 1.0)}), sample)
    with pytest.raises(RuntimeError, match="outside a target's program"):
        ia.moment("a", np.ones(2), 0.5)
    unchecked = inspect.unwrap(moment_match)  # as users have it: the tests check types before it
    with pytest.raises(ValueError, match=r"moment 'a' is given as \(feature, mean\), got 0.5"):
        unchecked(Categorical(P), {"a": 0.5})
    with pytest.raises(ValueError, match="feature of moment 'a' is a function"):
        unchecked(Categorical(P), {"a": (0.5, lambda y: A[y])})
    with pytest.raises(ValueError, match=r"a moment is given as \(name, feature, mean\)"):
        unchecked(Categorical(P), [("a", 0.5)])


def test_an_unsolved_target_provides_nothing() -> None:
    """Whoever needs a density refuses it before anything is drawn, and says how to solve it."""
    again = moment_match(moment_match(Categorical(P), {"a": FEATURES["a"]}), {"b": FEATURES["b"]})
    composed: list[Callable[[ia.Target], Any]] = [
        lambda t: tilt(t, lambda y: V[y], 1.0),
        lambda t: ia.product(Categorical(P), t),
        lambda t: temper(t, 2.0),
        lambda t: check_provides(t, frozenset({"samples"}), "maximum_likelihood"),
    ]
    for target in (TARGET, again, moment_match(TARGET)):
        assert target.provides == frozenset()
        for compose in composed:
            said = r"provides nothing: the multipliers .* exact.match_moments\(target\), solve_mom"
            with pytest.raises(ValueError, match=said):
                compose(target)
        assert unconstrained(target).provides == {"log_density"}
        solved = exact.match_moments(target).target
        assert solved.provides == {"log_density"}
        tilt(solved, lambda y: V[y], 1.0)
    given = moment_match(Categorical(P), {"a": FEATURES["a"]}, multipliers={"a": 0.3})
    assert given.provides == {"log_density"}


def test_moments_under_a_tilt_of_a_program_are_refused() -> None:
    """Whether a program declares moments is known when it runs; the refusal comes then."""

    def program() -> None:
        y = pyro.sample("y", pdist.Categorical(torch.as_tensor(P)))
        ia.moment("v", torch.as_tensor(V)[y], 0.2)

    tilted = tilt(ia.torch.target(program), lambda y: 1.0 * y, 1.0)
    sample = WeightedSample(torch.arange(N), np.log(P), np.log(P))
    with pytest.raises(ValueError, match="solve the inner target first"):
        solve_moments(tilted, sample)
    assert solve_moments(ia.torch.target(program), sample).achieved["v"] == pytest.approx(0.2)


def test_an_empty_sample_is_refused() -> None:
    """By the solution of moments and by that of a budget, alone and in contexts."""
    for shape in ((0,), (0, 2)):
        nothing = np.zeros(shape)
        sample = WeightedSample(nothing.astype(int), nothing, nothing)
        with pytest.raises(ValueError, match=r"sample of .* is empty: its weights have shape \(0,"):
            solve_moments(TARGET, sample)
        with pytest.raises(ValueError, match=r"sample of .* is empty"):
            kl_budget(Categorical(P), lambda y: V[y], 0.1, sample)


def test_dependent_draws_of_a_budget_are_worth_their_chains() -> None:
    """Chains that never move: as many draws as chains, as of a moment; alone, the Kish number."""
    y = np.repeat(np.random.default_rng(13).choice(N, 12, p=P), 100)
    sample = WeightedSample(y, np.zeros(1200), np.zeros(1200))
    alone = kl_budget(Categorical(P), lambda y: V[y], 0.1, sample)
    chains = sample._replace(cluster=np.arange(1200) // 100)
    found = kl_budget(Categorical(P), lambda y: V[y], 0.1, chains)
    assert alone.reliable
    assert not found.reliable
    assert "effective sample size" in found.notes[0]
    same = moment_match(Categorical(P), {"v": (lambda y: V[y], found.reward)})
    assert found.ess_pooled == pytest.approx(solve_moments(same, chains).ess_pooled)
    assert found.ess_pooled < 0.05 * alone.ess_pooled
    apart = kl_budget(Categorical(P), lambda y: V[y], 0.1, sample._replace(cluster=np.arange(1200)))
    assert apart.ess_pooled == pytest.approx(alone.ess_pooled)


@pytest.mark.parametrize("reward", [lambda y: 0.0 * y + 2.0, lambda y: V[y]], ids=["one", "alone"])
def test_a_reward_that_does_not_vary_buys_nothing(reward: Any) -> None:
    """A constant one, or that of a single draw: no KL can be spent, and the refusal says why."""
    sample = drawn(np.random.default_rng(14), 1 if reward(np.array([0])) != 2.0 else 50)
    with pytest.raises(ValueError, match="in no context does the reward vary among the accepted"):
        kl_budget(Categorical(P), reward, 0.1, sample)


def test_moments_of_a_moment_match_are_solved_together() -> None:
    """Declared in two steps or in one; a solved target's moments may move again."""
    first = {"a": FEATURES["a"]}
    rest = {"b": FEATURES["b"], "v": FEATURES["v"]}
    together = exact.match_moments(moment_match(moment_match(Categorical(P), first), rest))
    want = exact.match_moments(TARGET)
    assert together.multipliers == pytest.approx(want.multipliers)
    solved = exact.match_moments(moment_match(Categorical(P), first)).target
    again = exact.match_moments(moment_match(solved, rest))
    assert law(again.target) @ PHI[:, 1:] == pytest.approx(MEANS[1:])
    assert abs(law(again.target) @ PHI[:, 0] - 0.6) > 1e-3
    known = moment_match(Categorical(P), FEATURES, multipliers=want.multipliers)
    np.testing.assert_allclose(law(known), law(want.target))


def test_a_constraint_of_a_hard_base_keeps_minus_infinity() -> None:
    """Rejected outcomes stay rejected, and their features may be NaN."""
    base = ia.condition(Categorical(P), lambda y: y < 8)
    feature = lambda y: np.where(y < 8, V[y], np.nan)
    fit = exact.match_moments(moment_match(base, {"v": (feature, 0.3)}))
    p = law(fit.target)
    assert not np.isnan(p).any()
    assert p[8:].sum() == 0
    np.testing.assert_allclose(p[:8] @ V[:8], 0.3)


def test_moments_in_a_pyro_program() -> None:
    """Declared inside, with a factor and contexts; the batch and single outcomes must agree."""
    table = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)

    def program(x: Any) -> None:
        y = pyro.sample("y", pdist.Categorical(table[x]))
        pyro.factor("reward", 0.3 * y)
        ia.moment("two", y == 2, 0.4)
        ia.moment("mean", 1.0 * y, 1.1)

    target, x = ia.torch.target(program), torch.arange(2)
    assert target.given(x).sample((3,)).shape == (3, 2)
    fit = exact.match_moments(target, x)
    y = torch.arange(3)[:, None].expand(3, 2)
    p = torch.softmax(fit.target.log_density(y, x), dim=0)
    assert float(p[2].mean()) == pytest.approx(0.4, abs=1e-9)
    assert float((p * y).sum(0).mean()) == pytest.approx(1.1, abs=1e-9)
    with pytest.raises(ValueError, match="declares the moments two, mean"):
        target.log_density(y, x)
    n = 4000
    sample = unconstrained(target).given(x).sample((n,))
    log_weights = 0.3 * sample.double().numpy()
    rough = solve_moments(target, WeightedSample(sample, log_weights, log_weights), x)
    for name, value in rough.multipliers.items():
        assert abs(value - fit.multipliers[name]) < 5 * rough.multiplier_errors[name]

    def mixed() -> None:
        y = pyro.sample("y", pdist.Categorical(table[0]))
        ia.moment("rank", y.double() / y.double().sum(), 0.1)

    with pytest.raises(ValueError, match=r"moment 'rank' .* must treat outcomes separately"):
        exact.match_moments(ia.torch.target(mixed))


def test_a_budget_is_met_with_honest_errors() -> None:
    """The exact beta, the true KL within its error by replication, and the reach."""
    reward = lambda y: V[y]
    want = exact.kl_budget(Categorical(P), reward, 0.3)
    tilted = P * np.exp(V / want.beta)
    tilted = tilted / tilted.sum()
    assert (tilted * np.log(tilted / P)).sum() == pytest.approx(0.3, abs=1e-12)
    assert want.beta == pytest.approx(exact.tilts.beta_for_kl(exact.reward_law(P, V), 0.3))
    assert want.reward == pytest.approx(tilted @ V)
    rng, z = np.random.default_rng(11), []
    for _ in range(128):
        found = kl_budget(Categorical(P), reward, 0.3, drawn(rng, 600))
        q = law(found.target)
        z.append([((q * np.log(q / P)).sum() - 0.3) / found.kl_se,
                  (found.beta - want.beta) / found.beta_se])  # fmt: skip
    np.testing.assert_allclose(np.square(z).mean(axis=0), 1.0, atol=5 / 8)
    most = -math.log(P[V.argmax()])
    with pytest.raises(ValueError, match=rf"costs -log P\(max\) = {most:.6g} nats"):
        exact.kl_budget(Categorical(P), reward, most + 0.1)
    with pytest.raises(ValueError, match="nats > 0"):
        kl_budget(Categorical(P), reward, 0.0, drawn(rng, 10))


def test_a_budget_shared_by_contexts() -> None:
    """One beta; the mean KL is the budget."""
    table = np.random.default_rng(12).dirichlet(np.ones(N), size=2)
    base, x = (lambda x: Categorical(table[x])), np.arange(2)
    found = exact.kl_budget(base, lambda y, x: V[y] * (1 + x), 0.2, x)
    y = np.broadcast_to(np.arange(N)[:, None], (N, 2))
    p = np.exp(found.target.log_density(y, x))
    p = p / p.sum(axis=0)
    assert (p * np.log(p / table.T)).sum(axis=0).mean() == pytest.approx(0.2, abs=1e-10)


def test_outcomes_far_from_their_target_are_no_ground_for_moments() -> None:
    """Ends of chains: their number says nothing of how close they are."""
    sample = drawn(np.random.default_rng(7), 4000)
    for distance, word in ((0.01, "up to 0.01 from"), (math.nan, "unknown")):
        far = sample._replace(total_variation=distance)
        fit = solve_moments(TARGET, far)
        assert not fit.reliable
        assert word in fit.notes[0]
        assert not kl_budget(Categorical(P), lambda y: V[y], 0.1, far).reliable
        assert not match_moments(TARGET, lambda law, n, far=far: far, rounds=1).reliable
    assert solve_moments(TARGET, sample._replace(total_variation=1e-5)).reliable
