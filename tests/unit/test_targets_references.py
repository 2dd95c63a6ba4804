"""Powers, mixtures, ensembles, preferences and samples, against direct sums on three libraries."""

import itertools
import math

import numpy as np
import pytest

from infer_align import Space, Target, condition, product, tilt, uncertainty_weighted, worst_case
from infer_align.targets import (
    WeightedSample,
    demonstrations,
    geometric_mixture,
    mean_reward,
    preference_tilt,
    teacher,
    temper,
)
from tests.libraries import jnp, torch


def no_base():
    """Of targets of which only the potential is asked."""
    raise AssertionError


A = np.log([0.5, 0.3, 0.15, 0.05])
B = np.log([0.1, 0.2, 0.3, 0.4])
REWARD = np.array([1.0, -2.0, 0.5, 0.25])
Y = np.arange(4)
LIBRARIES = {"numpy": np, "jax": jnp, "torch": torch}
XP = pytest.mark.parametrize("xp", LIBRARIES.values(), ids=LIBRARIES)


class Law:
    """A law over 0, 1, ..., of one context or of several, in the library of its numbers."""

    event_shape = ()

    def __init__(self, log_p):
        self.log_p = log_p

    def log_prob(self, value):
        if self.log_p.ndim == 1:
            return self.log_p[value]
        return type(self)._columns(self.log_p, value)

    @staticmethod
    def _columns(table, value):
        return table[value, np.arange(table.shape[1])]


def law(xp, log_p):
    return Law(xp.asarray(np.asarray(log_p)))


def density(target, xp, y=Y):
    return np.asarray(target.log_density(xp.asarray(y)))


@XP
@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_temper_is_the_power(xp, power):
    """P^k by a direct sum, of a law and of a tilt; the prior stays the measure to draw from."""
    prior = law(xp, A)
    np.testing.assert_allclose(density(temper(prior, power), xp), power * A, rtol=1e-12)
    tilted = tilt(prior, lambda y: xp.asarray(REWARD)[y], beta=0.5)
    target = temper(tilted, power)
    np.testing.assert_allclose(density(target, xp), power * (A + REWARD / 0.5), rtol=1e-12)
    assert target.prior is prior
    p = np.exp(power * (A + REWARD / 0.5))
    got = Space(xp.asarray(Y)).solve(target)
    np.testing.assert_allclose(np.exp(np.asarray(got.log_prob)), p / p.sum(), rtol=1e-12)
    np.testing.assert_allclose(float(got.log_z), math.log(p.sum()), rtol=1e-12)


@XP
@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_rejected_outcomes_stay_rejected(xp, power):
    """Neither -inf of the prior nor of the potential becomes NaN or comes back to life."""
    prior = law(xp, np.append(A[:3], -math.inf))
    target = temper(condition(prior, lambda y: y != 1), power)
    want = power * np.array([A[0], -math.inf, A[2], -math.inf])
    np.testing.assert_allclose(density(target, xp), want)
    mixture = geometric_mixture([prior, law(xp, B), target], [0.25, 0.5, 0.25])
    np.testing.assert_array_equal(np.isneginf(density(mixture, xp)), [False, True, False, True])
    other = geometric_mixture([prior, law(xp, B)], [0.0, 1.0])  # what prior excludes has no draws
    np.testing.assert_allclose(density(other, xp), np.append(B[:3], -math.inf))


@XP
def test_geometric_mixture_is_the_product_of_powers(xp):
    """A weighted sum of log-densities; any base gives the same density."""
    a, b = law(xp, A), law(xp, B)
    tilted = tilt(b, lambda y: xp.asarray(REWARD)[y], beta=2.0)
    weights = [0.5, 0.2, 0.3]
    want = 0.5 * A + 0.2 * B + 0.3 * (B + REWARD / 2)
    mixture = geometric_mixture([a, b, tilted], weights)
    np.testing.assert_allclose(density(mixture, xp), want, rtol=1e-12)
    assert mixture.prior is a
    based = geometric_mixture([a, b, tilted], weights, base=tilted)
    assert based.prior is b
    np.testing.assert_allclose(density(based, xp), want, rtol=1e-12)


def test_geometric_mixture_minimises_the_weighted_kl():
    """Of all laws it has the least sum of w KL(pi, rho), which is -log Z (checked on a grid)."""
    weights = np.array([0.7, 0.3])
    mixture = geometric_mixture([law(np, A), law(np, B)], weights.tolist())
    solution = Space(Y).solve(mixture)

    def price(p):
        return sum(
            w * (p[p > 0] @ (np.log(p[p > 0]) - rho[p > 0]))
            for w, rho in zip(weights, (A, B), strict=True)
        )

    least = price(np.exp(solution.log_prob))
    np.testing.assert_allclose(least, -solution.log_z, rtol=1e-12)
    steps = [np.array(k) / 12 for k in itertools.product(range(13), repeat=4) if sum(k) == 12]
    assert min(price(p) for p in steps) > least


def test_tilt_of_the_mean_reward_mixes_the_tilts():
    """The mean reward's tilt is the geometric mixture of each reward's tilt."""
    one, other = (lambda y: REWARD[y]), (lambda y: B[y] - 1.0)
    prior, space = law(np, A), Space(Y)
    mixed = geometric_mixture([tilt(prior, r, 0.4) for r in (one, other)], [0.5, 0.5])
    target = tilt(prior, mean_reward(one, other), 0.4)
    np.testing.assert_allclose(space.log_target(target), space.log_target(mixed), rtol=1e-12)


@XP
def test_ensembles_are_direct_sums(xp):
    """Mean, worst case and uncertainty-weighted rewards, each tilted and normalised by hand."""
    table = np.stack([REWARD, B, REWARD[::-1]])
    by_table = lambda values: lambda y: xp.asarray(values)[y]
    rewards = [by_table(row.copy()) for row in table]
    cases = {
        mean_reward(*rewards): table.mean(0),
        worst_case(*rewards): table.min(0),
        uncertainty_weighted(*rewards, weight=0.7): table.mean(0) - 0.7 * table.var(0),
    }
    for reward, values in cases.items():
        p = np.exp(A + values / 0.3)
        got = Space(xp.asarray(Y)).solve(tilt(law(xp, A), reward, 0.3)).log_prob
        np.testing.assert_allclose(np.exp(np.asarray(got)), p / p.sum(), rtol=1e-12)
    with pytest.raises(ValueError, match="at least one reward"):
        mean_reward()


WINS = 1 / (1 + np.exp(REWARD[None, :] - 2 * B[:, None] + 2 * B[None, :] - REWARD[:, None]))


@XP
def test_an_ensemble_rejects_what_a_member_rejects(xp):
    """-inf, and no NaN, whatever the weight of the variance."""
    one, other = np.array([0.0, -math.inf, 1.0, -math.inf]), np.array([1.0, 2.0, 2.0, -math.inf])
    members = [lambda y: xp.asarray(one)[y], lambda y: xp.asarray(other)[y]]
    y = xp.asarray(Y)
    for weight in (0.5, 0.0, -1.0):
        got = np.asarray(uncertainty_weighted(*members, weight=weight)(y))
        want = np.array([0.5 - weight / 4, -math.inf, 1.5 - weight / 4, -math.inf])
        np.testing.assert_allclose(got, want)
    for combine in (mean_reward, worst_case):
        assert (np.isneginf(np.asarray(combine(*members)(y))) == np.isneginf(want)).all()


def test_rows_are_chosen_on_the_device_of_the_outcomes():
    """On torch's meta device, which takes no index of another one, as a GPU does not."""
    y = torch.zeros(5, 2, dtype=torch.long, device="meta")
    drawn = demonstrations(y).prior.draw(7, np.random.default_rng(0))
    assert (drawn.device.type, tuple(drawn.shape)) == ("meta", (7, 2))
    names = np.array([0, 0, 1])
    sample = WeightedSample(y[:3], np.zeros(3), np.zeros(3), cluster=names)
    wins = lambda y, other: 0.5 + 0.1 * (y - other)[:, 0].double()
    target = preference_tilt(no_base, wins, sample, 0.5)
    for value in (target.log_potential(y), target.log_potential_se(y)):
        assert (value.device.type, tuple(value.shape)) == ("meta", (5,))


@XP
def test_preference_tilt_is_a_direct_sum(xp):
    """The potential is the win rate over beta, for a law given by weights or by a sample."""
    table, q = xp.asarray(WINS), np.array([0.1, 0.2, 0.3, 0.4])
    wins = lambda y, other: table[y, other]
    target = preference_tilt(law(xp, A), wins, xp.asarray(Y), 0.25, weights=q)
    want = A + np.array([sum(q[j] * WINS[i, j] for j in range(4)) for i in range(4)]) / 0.25
    np.testing.assert_allclose(density(target, xp), want, rtol=1e-12)
    assert target.log_potential_se is None
    sample = WeightedSample(xp.asarray(Y), np.log(q) + 7.0, np.log(q))
    drawn = preference_tilt(tilt(law(xp, A), lambda y: table[y, 0], 1.0), wins, sample, 0.25)
    np.testing.assert_allclose(density(drawn, xp), want + WINS[:, 0], rtol=1e-12)


def test_preference_tilt_by_context():
    """Each context has its own opponents; the preference sees outcomes on axis 0 and contexts."""
    prior = Law(np.stack([A, B], axis=1))
    opponents = np.array([[0, 3], [1, 2], [1, 0]])
    q = np.array([[0.2, 0.6], [0.3, 0.4], [0.5, 0.0]])
    y = np.array([[3, 0], [1, 1], [2, 3], [0, 0], [1, 2]])
    shift = np.array([0.0, 0.125])

    def wins(y, other, x):
        assert y.shape == other.shape == (15, 2)
        return WINS[y, other] * (1 - x)

    target = preference_tilt(lambda x: prior, wins, opponents, 0.5, weights=q)
    want = np.empty((5, 2))
    for i, c in itertools.product(range(5), range(2)):
        mean = sum(q[j, c] * WINS[y[i, c], opponents[j, c]] for j in range(3))
        want[i, c] = (A, B)[c][y[i, c]] + mean * (1 - shift[c]) / 0.5
    np.testing.assert_allclose(target.log_density(y, shift), want, rtol=1e-12)
    shared = preference_tilt(lambda x: prior, wins, opponents, 0.5, weights=[1.0, 0.0, 0.0])
    want = WINS[y, opponents[:1]] * (1 - shift) / 0.5
    np.testing.assert_allclose(shared.log_potential(y, shift), want, rtol=1e-12)
    wrong = preference_tilt(lambda x: prior, lambda y, o: WINS[y[:, :1], y[:, :1]], opponents, 0.5,
                            weights=q)  # fmt: skip
    with pytest.raises(ValueError, match="opponents in contexts of shape"):
        wrong.log_potential(y)


def test_standard_error_of_a_sampled_opponent():
    """It is the spread over repeated samples of opponents, also of dependent ones."""
    rng = np.random.default_rng(3)
    proposal, q = np.array([0.25, 0.25, 0.25, 0.25]), np.array([0.1, 0.2, 0.3, 0.4])
    wins = lambda y, other: WINS[y, other]
    repeats = 800  # they stand on the context axis
    for copies in (1, 4):  # each draw repeated: clusters
        y = np.repeat(rng.choice(4, (60, repeats), p=proposal), copies, axis=0)
        log_w = np.log(q[y] / proposal[y])
        names = np.repeat(np.arange(60), copies)[:, None] + np.zeros((1, repeats), int)
        sample = WeightedSample(y, log_w, log_w, cluster=names if copies > 1 else None)
        target = preference_tilt(law(np, A), wins, sample, 0.5)
        asked = np.repeat(Y[:, None], repeats, axis=1)
        spread = np.std(target.log_potential(asked), axis=1, ddof=1)
        said = np.mean(target.log_potential_se(asked), axis=1)
        # A standard deviation of 800 values is known to 1/sqrt(1600); the delta method, to 1/60.
        assert (np.abs(spread / said - 1) < 5 / 40 + 1 / 60).all()


def test_standard_errors_are_carried_along():
    """Every combinator keeps what its base knows of its own error."""
    base = Target(law(np, A), lambda y: REWARD[y], log_potential_se=lambda y: 0.1 * (1.0 + y))
    error = 0.1 * (1.0 + Y)
    for target, factor in (
        (tilt(base, lambda y: 1.0 * y, 2.0), 1.0),
        (condition(base, lambda y: y > 0), 1.0),
        (temper(base, 3.0), 3.0),
        (product(law(np, B), base), 1.0),
        (product(base, base), 2.0),  # one estimate twice: its errors do not average out
        (geometric_mixture([law(np, A), base], [0.25, 0.75]), 0.75),
        (geometric_mixture([base, tilt(base, lambda y: 1.0 * y, 2.0)], [0.5, 0.5]), 1.0),
    ):
        np.testing.assert_allclose(target.log_potential_se(Y), factor * error, rtol=1e-12)
    exact = [law(np, A), law(np, B)]
    assert geometric_mixture(exact, [0.5, 0.5]).log_potential_se is None
    assert geometric_mixture([*exact, base], [0.5, 0.5, 0.0]).log_potential_se is None
    assert geometric_mixture(exact, [0.5, 0.5], base=base).log_potential_se is None  # its prior


@XP
def test_demonstrations_draw_by_their_weights(xp):
    """Draws of a data set follow its weights in each context, and of a subset of contexts."""
    outcomes = xp.asarray(np.array([[[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 2], [1, 2]]]))
    weights = np.array([[1.0, 4.0], [2.0, 0.0], [1.0, 1.0]])
    law_ = demonstrations(outcomes, weights).prior
    n, rng = 20_000, np.random.default_rng(0)
    y = np.asarray(law_.draw(n, rng))
    assert y.shape == (n, 2, 2)
    assert (y[:, :, 0] == [0, 1]).all()  # a context's own outcomes
    share = np.stack([(y[:, :, 1] == k).mean(0) for k in range(3)])
    p = weights / weights.sum(0)
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
    only = np.asarray(law_.draw(50, rng, contexts=[1]))
    assert only.shape == (50, 1, 2)
    assert set(only[:, 0, 1].tolist()) <= {0, 2}
    alike = demonstrations(outcomes).prior.draw(5, rng, context_axes=1)
    assert isinstance(alike, type(outcomes))
    assert tuple(alike.shape) == (5, 2, 2)


def test_demonstrations_of_a_sample_and_of_sites():
    """A weighted sample brings its weights; several sites stay together."""
    log_w = np.array([0.0, -math.inf, math.log(3.0)])
    target = demonstrations(WeightedSample({"a": Y[:3], "b": 10 * Y[:3]}, log_w, log_w))
    np.testing.assert_allclose(target.prior.probabilities, [0.25, 0, 0.75])
    y = target.prior.draw(100, np.random.default_rng(1))
    assert set(y["a"].tolist()) == {0, 2}
    np.testing.assert_array_equal(y["b"], 10 * y["a"])


def test_demonstrations_have_no_density():
    """Whoever asks for one is told what to do."""
    target = demonstrations(Y, name="essays")
    assert target.provides == {"samples"}
    for ask in (target.log_density, target.log_potential, target.prior.log_prob):
        with pytest.raises(ValueError, match=r"'essays' .* estimators.maximum_likelihood\(\)"):
            ask(Y)
    for combine in (
        lambda t: tilt(t, lambda y: y, 1.0),
        lambda t: condition(t, lambda y: y > 0),
        lambda t: temper(t, 2.0),
        lambda t: product(law(np, A), t),
        lambda t: geometric_mixture([law(np, A), t], [0.5, 0.5]),
    ):
        with pytest.raises(ValueError, match=r"'essays' provides samples"):
            combine(target)


def test_a_teacher_is_normalised_and_can_be_drawn_from():
    """A distribution as a target: log Z is 0, and what it provides is said."""
    target = teacher(law(np, A))
    np.testing.assert_allclose(density(target, np), A)
    assert target.log_z == 0.0
    assert target.provides == {"log_density", "samples"}
    assert tilt(target, lambda y: REWARD[y], 1.0).provides == {"log_density"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: temper(law(np, A), 0.0), "positive and finite, got 0"),
        (lambda: temper(law(np, A), math.inf), "positive and finite"),
        (lambda: geometric_mixture([], []), "a weight for each reference"),
        (lambda: geometric_mixture([law(np, A)], [0.5]), "sum to one"),
        (lambda: geometric_mixture([law(np, A)] * 2, [1.5, -0.5]), "non-negative"),
        (lambda: preference_tilt(law(np, A), abs, Y, 0.0), "beta is a temperature"),
        (lambda: preference_tilt(law(np, A), abs, Y, 1.0, weights=[1.0]), "weights of 4"),
        (lambda: preference_tilt(law(np, A), abs, Y, 1.0, weights=-Y), "non-negative"),
        (lambda: preference_tilt(law(np, A), abs, Y, 1.0, weights=0 * Y), "no positive weight"),
        (lambda: uncertainty_weighted(len, weight=math.nan), "finite number, got nan"),
        (lambda: uncertainty_weighted(len, weight=math.inf), r"take worst_case\(...\)"),
        (lambda: demonstrations(Y, [1.0, 2.0]), "weights of shape"),
        (lambda: demonstrations(Y, -Y), "non-negative"),
        (lambda: demonstrations(Y, 0 * Y), "no demonstration of positive weight"),
        (lambda: demonstrations(np.zeros((0, 3))), "no demonstration"),
    ],
)
def test_what_cannot_be_right_is_refused(make, message):
    """Each refusal says what was given and what to do."""
    with pytest.raises(ValueError, match=message):
        make()
