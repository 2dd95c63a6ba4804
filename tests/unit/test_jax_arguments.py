"""Arguments that cannot be right are refused with a sentence, at the door of every function."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import infer_align as ia
from infer_align.jax import (
    assess,
    fit,
    lab,
    memoryless,
    mixture,
    policy_gradient,
    source,
    tabular,
    target,
)
from infer_align.jax import programs as P
from infer_align.jax.programs import objectives as O


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """The tests' check of annotations would speak before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


KEY, TWO, ESTIMATOR = jax.random.key(0), jnp.zeros(2), ia.f_dpg(ia.divergences.forward_kl)


def program():
    y = numpyro.sample("y", dist.Categorical(jnp.array([0.6, 0.4])))
    numpyro.factor("r", 1.0 * y)


def conditional(a, b):
    y = numpyro.sample("y", dist.Categorical(jnp.array([0.6, 0.4])))
    numpyro.factor("r", a * y + b)


def fitted(**changed):
    given = dict(key=KEY, policy=tabular, params=TWO, target=program, estimator=ESTIMATOR)
    return fit(**(given | changed))


def loss(t):
    return numpyro.sample("x", dist.Normal(t, 1.0))


LOSS = P.expectation(loss)
COUNTS = {
    "fit n": lambda x: fitted(n=x),
    "fit steps": lambda x: fitted(steps=x),
    "assess n": lambda x: assess(KEY, tabular(TWO), program, n=x),
    "draw n": lambda x: source(KEY, program).draw(x),
    "programs.fit steps": lambda x: P.fit(KEY, LOSS, 0.0, steps=x),
    "programs.fit batch": lambda x: P.fit(KEY, LOSS, 0.0, batch=x),
    "expectation n": lambda x: P.expectation(loss, n=x),
    "score_loo n": lambda x: P.score_loo(x),
    "particles n": lambda x: P.particles(x, lambda: 1.0),
    "marginal n": lambda x: P.marginal(program, ["y"], program, n=x),
    "normalize n": lambda x: P.normalize(program, program, n=x),
    "vargrad n": lambda x: O.vargrad(program, program, n=x),
    "length": lambda x: memoryless(TWO, length=x),
    "length with eos": lambda x: memoryless(TWO, length=x, eos=1),
    "compare n": lambda x: lab.compare(loss, {"default": None}, 0.0, key=KEY, n=x),
    "compare batch": lambda x: lab.compare(loss, {"default": None}, 0.0, key=KEY, batch=x),
}
OTHERS = {
    "a seed for a key": (lambda: fitted(key=0), TypeError, r"jax\.random\.key\(0\)"),
    "assess with a seed": (
        lambda: assess(0, tabular(TWO), program), TypeError, r"jax\.random\.key\(0\)",
    ),
    "source with a seed": (lambda: source(0, program), TypeError, r"jax\.random\.key\(0\)"),
    "source the wrong way round": (lambda: source(program, KEY), TypeError, "random key"),
    "programs.fit with a seed": (lambda: P.fit(0, LOSS, 0.0), TypeError, "random key"),
    "a learning rate": (lambda: fitted(optimizer=0.1), TypeError, r"optax\.adam\(1e-2\)"),
    "a learning rate of programs": (
        lambda: P.fit(KEY, LOSS, 0.0, optimizer=0.1), TypeError, r"optax\.adam\(1e-2\)",
    ),
    "a divergence": (
        lambda: fitted(estimator=ia.divergences.forward_kl), TypeError, "must be an Estimator",
    ),
    "a function that makes an estimator": (
        lambda: fitted(estimator=ia.f_dpg), TypeError, "must be an Estimator",
    ),
    "numbers for a policy": (lambda: fitted(policy=TWO), TypeError, "function from parameters"),
    "a distribution for a policy": (
        lambda: fitted(policy=tabular(TWO)), TypeError, "function from parameters",
    ),
    "a number for a proposal": (lambda: fitted(proposal=3), TypeError, "a proposal is"),
    "contexts without a tuple": (
        lambda: fitted(contexts=jnp.ones(3)), TypeError, r"contexts=\(x,\)",
    ),
    "another fit's state": (lambda: fitted(resume=3), TypeError, "must be a FitState"),
    "another fit's state of programs": (
        lambda: P.fit(KEY, LOSS, 0.0, resume=3), TypeError, "must be a FitState",
    ),
    "a function for an expectation": (
        lambda: P.fit(KEY, loss, 0.0), TypeError, "must be an Expectation",
    ),
    "a number for an objective": (lambda: P.expectation(3.0), TypeError, "an objective is"),
    "a policy for a distribution": (
        lambda: assess(KEY, tabular, program), TypeError, r"policy\(params, \*contexts\)",
    ),
    "contexts left out": (lambda: next(fitted(target=conditional)), TypeError, "takes .a, b."),
    "contexts left out of exact": (
        lambda: ia.exact.solve(target(conditional)), TypeError, r"called with 0 contexts",
    ),
    "one context of two": (
        lambda: source(KEY, conditional, contexts=(jnp.ones(3),)), TypeError, "with 1 contexts",
    ),
    "a decay of 1": (lambda: P.score_running(1.0), ValueError, r"\[0, 1\)"),
    "a decay of NaN": (lambda: P.score_running(math.nan), ValueError, "finite"),
    "a baseline of NaN": (lambda: P.score_baseline(math.nan), ValueError, "finite"),
    "a baseline in words": (lambda: P.score_baseline("mean"), TypeError, "a number or a function"),
    "a temperature of NaN": (lambda: P.gumbel_softmax(math.nan), ValueError, "positive"),
    "a temperature of 0": (lambda: P.straight_through(0), ValueError, "positive"),
    "an infinite temperature": (lambda: P.gumbel_softmax(math.inf), ValueError, "positive"),
    "an order of NaN": (
        lambda: O.renyi_bound(program, program, alpha=math.nan, n=2), ValueError, "finite",
    ),
    "an order of 1": (
        lambda: O.chi_upper_bound(program, program, order=1.0), ValueError, "order > 1",
    ),
    "weights of NaN": (
        lambda: mixture([tabular(TWO), tabular(TWO)], [1.0, math.nan]), ValueError, "positive",
    ),
}  # fmt: skip


@pytest.mark.parametrize("value", [0, 1.5, math.nan, "3"], ids=str)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_numbers(name, value):
    kind = TypeError if value == "3" else ValueError
    with pytest.raises(kind, match=r"at least|whole number"):
        COUNTS[name](value)


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments_are_refused_with_a_remedy(name):
    call, kind, said = OTHERS[name]
    with pytest.raises(kind, match=said):
        call()


def test_whole_numbers_of_other_types_and_old_keys_are_taken():
    old = jax.random.PRNGKey(0)
    step = next(fitted(key=old, n=jnp.asarray(4), optimizer=optax.chain(optax.sgd(0.1))))
    assert len(step.outcomes) == 4


def test_a_mixture_is_a_proposal_of_a_fit():
    both = mixture([tabular(TWO), tabular(jnp.array([1.0, 0.0]))], [1.0, 1.0])
    weights = next(fitted(proposal=both, n=8)).weights
    log_q = both.log_prob(jnp.arange(2))
    assert set(weights.proposal.tolist()) <= set(map(float, log_q))


def test_a_loss_that_is_infinite_ends_a_fit():
    rejected = P.expectation(
        lambda t: jnp.where(numpyro.sample("x", dist.Normal(t, 1.0)) > 9, t, -jnp.inf)
    )
    with pytest.raises(ValueError, match="the loss at step 0 is not finite"):
        next(P.fit(KEY, rejected, 0.0))


PARAMS = {
    "integers": (jnp.zeros(2, int), "params is .*int"),
    "a leaf of integers": ({"a": TWO, "b": [0, 1]}, r"params\['b'\]\[0\] is int"),
    "booleans": (jnp.zeros(2, bool), "bool"),
    "complex": (jnp.zeros(2, complex), "complex"),
    "text": ("x", "params is str"),
    "an object": (object(), "params is object"),
    "nothing": ({}, "nothing to fit"),
    "None": (None, "nothing to fit"),
}


@pytest.mark.parametrize("name", PARAMS)
def test_parameters_that_no_gradient_moves(name):
    """Of integers it was JAX's own sentence, of nothing a run that fitted nothing."""
    wrong, said = PARAMS[name]
    with pytest.raises((TypeError, ValueError), match=said):
        fitted(params=wrong)
    with pytest.raises((TypeError, ValueError), match=said):
        policy_gradient(tabular, wrong, jnp.array([0, 1]), TWO)
    if wrong is not None:  # where the numpyro.param sites are meant
        with pytest.raises((TypeError, ValueError), match=said):
            P.fit(KEY, LOSS, wrong)


FEATURES = {
    "a number": (3, "mapping from names"),
    "a function": (lambda y: y, "mapping from names"),
    "a list": ([lambda y: y], "mapping from names"),
    "no function": ({"a": 3}, r"'a' must be one of functions .*got 3 \(int\)"),
    "no name": ({1: lambda y: y}, "one name is 1"),
    "of None": ({"a": lambda y: None}, "'a' must be an array"),
    "of text": ({"a": lambda y: "x"}, "'a' must be an array"),
    "of one number": ({"a": lambda y: jnp.zeros(())}, r"shape \(\)"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_of_assess(name):
    wrong, said = FEATURES[name]
    with pytest.raises((TypeError, ValueError), match=said):
        assess(KEY, tabular(TWO), program, n=8, features=wrong)
