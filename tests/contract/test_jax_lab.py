"""The laboratory's numbers are those of their definitions; its intervals tell right from wrong."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import TypeCheckError

from infer_align import Space, divergences, estimators
from infer_align.diagnostics import Measurement, compare_gradients
from infer_align.jax import lab, policy_gradient, programs
from infer_align.targets import Target

KEY = jax.random.key(0)


def coins(params):
    """Two dependent coins; asymmetric in everything."""
    first = numpyro.sample("first", dist.Bernoulli(params["p"]))
    second = numpyro.sample("second", dist.Bernoulli(logits=params["q"] * (first - 0.3)))
    return (first - 0.4) ** 2 + 0.7 * first * second - 0.2 * second * params["p"]


PARAMS = {"p": jnp.array(0.3), "q": jnp.array(0.8)}


def by_hand(params):
    """The expectation of `coins` as a sum."""
    total = 0.0
    for first, second in itertools.product((0.0, 1.0), repeat=2):
        p = params["p"] if first else 1 - params["p"]
        odds = jax.nn.sigmoid(params["q"] * (first - 0.3))
        value = (first - 0.4) ** 2 + 0.7 * first * second - 0.2 * second * params["p"]
        total += p * (odds if second else 1 - odds) * value
    return total


@pytest.fixture(scope="module")
def comparison():
    choices = {
        "sum": {"first": programs.enumerate_, "second": programs.enumerate_},
        "score": {"first": programs.score, "second": programs.score},
        "running": dict.fromkeys(("first", "second"), programs.score_running(0.8)),
        "relaxed": dict.fromkeys(("first", "second"), programs.gumbel_softmax(3.0)),
    }
    return lab.compare(coins, choices, PARAMS, key=KEY, n=2000, batch=400)


def test_exact_gradient_is_the_sum_over_all_values(comparison):
    exact = jax.grad(by_hand)(PARAMS)
    for row in comparison.rows:
        np.testing.assert_allclose(row.exact, [exact["p"], exact["q"]], rtol=1e-12)
    assert comparison.names == ("params.p", "params.q")
    assert comparison.source == "by enumeration: 4 joint values"
    np.testing.assert_allclose(comparison["sum"].mean, comparison["sum"].exact, rtol=1e-12)
    assert comparison["sum"].total_variance == 0.0


def test_intervals_tell_right_from_wrong(comparison):
    assert [row.covers_zero for row in comparison.rows] == [True, True, True, False]
    assert [row.claim for row in comparison.rows] == ["unbiased"] * 3 + ["biased"]
    assert comparison["relaxed"].reason == "the program sees a relaxed value"


def test_variance_is_that_of_every_outcome(comparison):
    """Σ_y π(y) ‖g(y)‖² − ‖g‖² of the score function, by listing the values of the coins."""

    def one(first, second):
        def surrogate(params):
            odds = jax.nn.sigmoid(params["q"] * (first - 0.3))
            log_q = jnp.log(params["p"] if first else 1 - params["p"])
            log_q += jnp.log(odds if second else 1 - odds)
            value = (first - 0.4) ** 2 + 0.7 * first * second - 0.2 * second * params["p"]
            return jax.lax.stop_gradient(value) * log_q + value, jnp.exp(log_q)

        gradient, mass = jax.grad(surrogate, has_aux=True)(PARAMS)
        return float(mass), np.array([gradient["p"], gradient["q"]])

    listed = [one(*y) for y in itertools.product((0.0, 1.0), repeat=2)]
    mean = sum(mass * g for mass, g in listed)
    variance = sum(mass * (g - mean) ** 2 for mass, g in listed)
    row = comparison["score"]
    np.testing.assert_allclose(mean, row.exact, rtol=1e-9)
    assert abs(row.total_variance - variance.sum()) < 5 * row.total_variance_se
    assert row.total_variance_se < 0.05 * variance.sum()
    # A running baseline near E[f] takes most of it away.
    assert comparison["running"].total_variance < 0.7 * variance.sum()


def test_statistics_are_those_of_the_gradients_drawn():
    """The gradients again, one key at a time, with NumPy's mean and variance."""
    choice = {"x": programs.score_loo(3)}

    def objective(p, shift):
        return (numpyro.sample("x", dist.Bernoulli(p)) - shift) ** 2

    found = lab.compare(
        objective, {"loo": choice}, 0.3, 0.4, key=KEY, n=70, batch=32, exact=jnp.array(0.2)
    )
    row = found["loo"]
    assert found.source == "as given"
    assert row.covers_zero  # (1 − 2·0.4) is the slope in p
    loss = programs.expectation(objective, choice)
    keys = [jax.random.fold_in(KEY, i) for i in range(70)]
    gradient = jax.jit(jax.grad(loss, argnums=1))
    g = np.array([gradient(key, 0.3, 0.4) for key in keys])
    np.testing.assert_allclose(row.mean, g.mean(), rtol=1e-12)
    np.testing.assert_allclose(row.variance, g.var(ddof=1), rtol=1e-12)
    squares = (g - g.mean()) ** 2
    assert row.total_variance_se == pytest.approx(squares.std(ddof=1) / math.sqrt(70))
    assert row.n == 70
    assert row.efficiency == row.total_variance * row.seconds > 0
    assert row.flops > 0


def test_numbers_depend_on_the_key_alone(comparison):
    again = lab.compare(
        coins, {"score": dict.fromkeys(("first", "second"), programs.score)}, PARAMS, key=KEY,
        n=2000, batch=500,
    )  # fmt: skip
    np.testing.assert_allclose(again["score"].mean, comparison["score"].mean, rtol=1e-9)


def mixed(params):
    """A normal site, a coin that depends on it, and a jump."""
    z = numpyro.sample("z", dist.Normal(params, 0.5))
    b = numpyro.sample("b", dist.Bernoulli(logits=z))
    return jnp.where(b > 0, z**2, z)


def test_quadrature_where_the_other_sites_are_normal():
    found = lab.compare(mixed, {"local": {"b": programs.local_expectation}}, 0.4, key=KEY, n=400)
    x = np.linspace(0.4 - 6, 0.4 + 6, 20_001)

    def mean(m):
        q = np.exp(-((x - m) ** 2) / 0.5) / math.sqrt(0.5 * math.pi)
        p = 1 / (1 + np.exp(-x))
        return np.trapezoid(q * (p * x**2 + (1 - p) * x), x)

    slope = (mean(0.4 + 1e-4) - mean(0.4 - 1e-4)) / 2e-4
    assert found["local"].exact == pytest.approx(slope, rel=1e-6)
    assert "Gauss-Hermite" in found.source
    assert "2 joint values" in found.source
    assert found["local"].covers_zero


def test_quadrature_sees_a_jump_that_the_pathwise_gradient_does_not():
    def jump(m):
        return jnp.where(numpyro.sample("z", dist.Normal(m, 1.0)) > 0, 1.0, 0.0)

    found = lab.compare(jump, {"path": None, "score": {"z": programs.score}}, 0.2, key=KEY)
    density = math.exp(-0.02) / math.sqrt(2 * math.pi)
    assert found["path"].exact == pytest.approx(density, abs=0.05)
    assert found["score"].covers_zero
    assert found["path"].covers_zero is None  # 0 in every draw: rare, or not seen
    assert "path: no draw moved 1 of the 1 components" in str(found)


def test_unknown_exact_gradient_says_why():
    def objective(m):
        return numpyro.sample("g", dist.Laplace(m, 1.0)) ** 2

    found = lab.compare(objective, {"path": None}, 2.0, key=KEY, n=50, batch=50)
    assert "site 'g' (Laplace) is neither finite nor normal" in found.source
    assert found["path"].covers_zero is None
    assert np.isnan(found["path"].bias).all()
    assert "unknown" in str(found)


def test_subsamples_are_no_enumeration():
    data = jnp.arange(10.0) ** 2

    def subsampled(p):
        with numpyro.plate("data", 10, subsample_size=2) as index:
            scale = data[index].sum()
        return scale * numpyro.sample("x", dist.Bernoulli(p))

    choice = {"sum": {"x": programs.enumerate_}}
    found = lab.compare(subsampled, choice, 0.3, key=KEY, n=50, batch=50)
    assert "draws what is no sample site" in found.source


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"estimators": {}}, ValueError, "a mapping from labels to choices"),
        ({"estimators": {"a": {"y": programs.score}}}, ValueError, "'a': site 'x' .* no estimator"),
        ({"n": 1}, ValueError, "n must be at least 2, got 1"),
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"argnums": 3}, ValueError, "argnums has 3"),
        ({"exact": jnp.zeros(2)}, ValueError, "give one like the differentiated"),
        ({"level": 1.0}, ValueError, "level is the coverage"),
        ({"args": ()}, ValueError, "no argument to differentiate"),
        ({"args": (1,)}, ValueError, "only floating-point numbers have a gradient"),
    ],
)
def test_errors(arguments, error, message):
    def objective(p=0.3):
        return numpyro.sample("x", dist.Bernoulli(p))

    given = {"estimators": {"a": {"x": programs.score}}, "args": (0.3,), "n": 20} | arguments
    choices, args = given.pop("estimators"), given.pop("args")
    with pytest.raises(error, match=message):
        lab.compare(objective, choices, *args, key=KEY, **{"batch": 10} | given)


def test_one_estimator_in_place_of_a_choice():
    """Its tuple would pass for a choice of sites only until it is read."""
    with pytest.raises((TypeError, TypeCheckError), match="estimators"):
        lab.compare(mixed, {"a": programs.score}, 0.3, key=KEY)


def test_gradients_that_cannot_be_compared():
    good = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"needed is .n, P."):
        compare_gradients({"a": Measurement(np.ones(3))})
    with pytest.raises(ValueError, match="1 of 4 gradients are not finite"):
        compare_gradients({"a": Measurement(np.where(np.eye(4, 2, -3), np.nan, good))})
    with pytest.raises(ValueError, match="same parameters"):
        compare_gradients({"a": Measurement(good), "b": Measurement(np.ones((4, 3)))})
    with pytest.raises(ValueError, match="exact gradient has shape"):
        compare_gradients({"a": Measurement(good, np.ones(3))})
    with pytest.raises(ValueError, match="1 names were given for 2"):
        compare_gradients({"a": Measurement(good)}, names=["x"])
    with pytest.raises(KeyError, match="no row 'b'"):
        compare_gradients({"a": Measurement(good)})["b"]


def test_intervals_cover_at_their_level():
    """In 500 comparisons of skewed gradients with 3 components, joint coverage is as stated."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        draws = rng.exponential(size=(200, 3)) * [1.0, 2.0, 0.1]
        row = compare_gradients({"e": Measurement(draws, np.array([1.0, 2.0, 0.1]))})["e"]
        covered += row.covers_zero
    assert abs(covered / 500 - 0.95) < 0.035


def test_a_constant_gradient_is_judged_and_a_rare_one_is_not():
    exact = np.array([1.0, 2.0])
    same = np.tile([1.0, 2.5], (100, 1))
    assert compare_gradients({"a": Measurement(same, exact)})["a"].covers_zero is False
    rare = np.random.default_rng(0).normal(exact, [1.0, 0.0], (100, 2)) * [1.0, 0.0]
    found = compare_gradients({"a": Measurement(rare, exact)})
    assert found["a"].covers_zero is None
    assert np.isinf(found["a"].low).tolist() == [False, True]
    assert "no draw moved 1 of the 2 components" in str(found)


def test_table_holds_the_numbers(comparison):
    text = str(comparison)
    head, *rest = text.splitlines()
    assert head.split() == [
        *"estimator claim bias 95% interval covers 0 variance rel. sd FLOPs time var*time".split()
    ]
    rows = {line.split()[0]: line for line in rest[:4]}
    assert list(rows) == ["sum", "score", "running", "relaxed"]
    assert "! biased" in rows["relaxed"]
    assert " NO " in rows["relaxed"]
    assert " exact " in rows["sum"]
    score = comparison["score"]
    for number in (score.total_variance, score.bias[score.furthest], score.efficiency):
        assert f"{number:.3g}" in rows["score"]
    assert "exact gradient: by enumeration: 4 joint values" in text
    assert "relaxed is biased: the program sees a relaxed value" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_plots_draw_what_the_table_says(comparison, tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    assert comparison.plot(left) is left
    assert comparison.plot_bias(right) is right
    labels = [text.get_text() for text in left.texts]
    assert sorted(labels) == ["relaxed", "running", "score", "sum (variance 0)"]
    assert [t.get_text() for t in right.get_yticklabels()] == ["sum", "score", "running", "relaxed"]
    figure.savefig(tmp_path / "lab.png")
    assert (tmp_path / "lab.png").stat().st_size > 5000
    untimed = compare_gradients({"a": Measurement(np.ones((4, 2)))})
    with pytest.raises(ValueError, match="no row has a time"):
        untimed.plot(left)
    with pytest.raises(ValueError, match="no bias can be drawn"):
        untimed.plot_bias(right)


# The core's estimators on a policy with listed outcomes.

SPACE = Space(jnp.arange(5))
LOG_Z = 1.3
DENSITY = jnp.log(jnp.array([0.05, 0.25, 0.1, 0.2, 0.4])) + LOG_Z
FEATURES = jnp.array([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3], [-0.2, 2.0], [0.1, 0.1]])
PLACE = {"bias": jnp.array(0.7), "weights": jnp.array([0.4, -0.3])}
"""Parameters that several outcomes share."""


def policy(params):
    first = jnp.where(jnp.arange(5) == 0, params["bias"], 0.0)
    return dist.Categorical(logits=FEATURES @ params["weights"] + first)


def target():
    flat = dist.Categorical(logits=jnp.zeros(5))
    return Target(flat, lambda y: DENSITY[y] + jnp.log(5.0))


@pytest.fixture(
    scope="module",
    params=[None, {"bias": jnp.array(-0.2), "weights": jnp.zeros(2)}],
    ids=["on", "off"],
)
def policies(request):
    """Two outcomes a batch, so that every batch can be listed."""
    choices = {
        "js": estimators.f_dpg(
            divergences.jensen_shannon, log_z=estimators.known_log_z(LOG_Z),
            baseline=estimators.leave_one_out(),
        ),
        "batch z": estimators.f_dpg(divergences.jensen_shannon),
        "tb": estimators.trajectory_balance(),
    }  # fmt: skip
    proposal = None if request.param is None else policy(request.param)
    found = lab.compare_policy_gradients(
        policy, PLACE, target(), choices, space=SPACE, key=KEY, n=500, outcomes=2,
        proposal=proposal,
    )  # fmt: skip
    return found, choices, proposal


def test_policy_gradients_against_every_batch(policies):
    found, choices, proposal = policies
    log_policy = policy(PLACE).log_prob(SPACE.outcomes)
    log_proposal = None if proposal is None else proposal.log_prob(SPACE.outcomes)
    loss = lambda p: choices["js"].loss(policy(p).log_prob(SPACE.outcomes), DENSITY, log_proposal)
    exact = jax.jit(jax.grad(loss))(PLACE)
    flat = np.array([exact["bias"], *exact["weights"]])
    np.testing.assert_allclose(found["js"].exact, flat, rtol=1e-9, atol=1e-12)
    assert found.names == ("params.bias", "params.weights[0]", "params.weights[1]")
    assert found["js"].covers_zero
    assert found["batch z"].claim == "bias O(1/n)"
    assert (found["tb"].exact is None) == (proposal is not None)  # its loss moves with log Z
    # The variance by all 25 batches, through `policy_gradient`.
    index = np.array(list(itertools.product(range(5), repeat=2)))
    pick = lambda x: None if x is None else np.asarray(x)[index].T
    weights = estimators.LogWeights(pick(log_policy), pick(DENSITY), pick(log_proposal))
    c = choices["js"].update(choices["js"].init(), weights).coefficients.T * len(index)
    each = jax.jit(jax.vmap(lambda y, c: policy_gradient(policy, PLACE, y, c)))
    g = each(SPACE.outcomes[index], jnp.asarray(c))
    g = np.column_stack([g["bias"], g["weights"]])
    drawn = np.asarray(log_policy if proposal is None else log_proposal)
    mass = np.exp(drawn[index].sum(axis=1))
    variance = mass @ (g - mass @ g) ** 2
    row = found["js"]
    assert abs(row.total_variance - variance.sum()) < 5 * row.total_variance_se
    assert row.flops > 0
    assert row.seconds > 0


@pytest.mark.parametrize(
    ("choices", "outcomes", "message"),
    [
        ({}, 4, "a mapping from labels to estimators"),
        ({"loo": estimators.reinforce()}, 1, "'loo' .* needs at least 2 outcomes"),
    ],
)
def test_policy_gradient_errors(choices, outcomes, message):
    with pytest.raises(ValueError, match=message):
        lab.compare_policy_gradients(
            policy, PLACE, target(), choices, space=SPACE, key=KEY, outcomes=outcomes
        )
