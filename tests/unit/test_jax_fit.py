"""`fit` reaches the target, repeats and resumes bit for bit, and refuses what cannot be right."""

import math
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from infer_align import Space, diagnostics, divergences, estimators, indicator
from infer_align.jax import assess, fit, tabular, target

PROBS = jnp.array([0.30, 0.25, 0.20, 0.12, 0.08, 0.05])
REWARD = jnp.array([0.0, -1.0, 1.0, 0.5, 2.0, 3.0])
SPACE = Space(jnp.arange(6))
JS = estimators.f_dpg(divergences.jensen_shannon)
KEY = jax.random.key(0)


def bandit():
    y = numpyro.sample("y", dist.Categorical(PROBS))
    numpyro.factor("reward", REWARD[y] / 1.0)


def constrained():
    y = numpyro.sample("y", dist.Categorical(PROBS))
    numpyro.factor("allowed", indicator((y != 0) & (y != 3)))


def exact(divergence, params, program=bandit):
    log_target = SPACE.log_target(target(program))
    return float(divergence(jax.nn.log_softmax(params), log_target))


def last(run):
    *_, step = run
    return step


@pytest.mark.parametrize(
    "divergence",
    [divergences.jensen_shannon, divergences.forward_kl, divergences.reverse_kl],
    ids=lambda d: d.name,
)
def test_reaches_the_target(divergence):
    start = jnp.zeros(6)
    assert exact(divergence, start) > 0.05
    step = last(
        fit(KEY, tabular, start, bandit, estimators.f_dpg(divergence), steps=200,
            optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 200)))
    )  # fmt: skip
    assert exact(divergence, step.params) < 1e-3
    log_z = float(SPACE.log_z(target(bandit)))
    assert step.metrics["log_z"] == pytest.approx(log_z, abs=0.05)
    assert step.metrics["ess"] > 0.98


@pytest.mark.parametrize(
    "estimator",
    [
        estimators.vargrad(),
        estimators.trajectory_balance(),
        estimators.reinforce(baseline=estimators.running()),
        estimators.f_dpg(divergences.forward_kl, log_z=estimators.running_log_z()),
    ],
    ids=lambda e: e.name,
)
def test_stateful_estimators_reach_the_target(estimator):
    run = fit(KEY, tabular, jnp.zeros(6), bandit, estimator, steps=300,
              optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 300)))  # fmt: skip
    assert exact(divergences.jensen_shannon, last(run).params) < 3e-3


def test_estimator_state_is_carried():
    """A learnt log Z finds its place between updates, and comes back in the state."""
    estimator = estimators.trajectory_balance(log_z=estimators.learnt_log_z(learning_rate=0.2))
    step = last(fit(KEY, tabular, jnp.zeros(6), bandit, estimator, steps=300,
                    optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 300))))  # fmt: skip
    (learnt,) = jax.tree.leaves(step.state.estimator)
    assert float(learnt) == pytest.approx(float(SPACE.log_z(target(bandit))), abs=0.1)


def test_off_policy():
    """Outcomes from the prior, importance-weighted; the proposal may depend on the parameters."""
    for proposal in (target(bandit).prior, lambda p: dist.Categorical(logits=p / 2)):
        step = last(
            fit(KEY, tabular, jnp.zeros(6), bandit, JS, steps=200, proposal=proposal,
                optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 200)))
        )  # fmt: skip
        assert step.weights.proposal is not None
        assert exact(divergences.jensen_shannon, step.params) < 2e-3


def test_hard_constraint():
    """Mass leaves the rejected outcomes; no NaN anywhere."""
    steps = list(fit(KEY, tabular, jnp.zeros(6), constrained, JS, steps=150,
                     optimizer=optax.adam(0.1)))  # fmt: skip
    first, final = steps[0], steps[-1]
    assert first.metrics["reverse_kl"] == math.inf  # the policy leaks: certainly infinite
    assert 0.5 < first.metrics["acceptance"] < 0.85
    assert all(math.isfinite(s.metrics["grad_norm"]) for s in steps)
    probs = jax.nn.softmax(final.params)
    assert float(probs[0] + probs[3]) < 0.02


def test_unbounded_divergence_refuses_a_hard_constraint():
    run = fit(KEY, tabular, jnp.zeros(6), constrained, estimators.f_dpg(divergences.reverse_kl))
    with pytest.raises(ValueError, match="use f_dpg with forward_kl, jensen_shannon"):
        next(run)


def test_a_batch_without_an_accepted_outcome_is_skipped():
    def nothing_seen():
        y = numpyro.sample("y", dist.Categorical(PROBS))
        numpyro.factor("rare", indicator(y == 5))

    policy = lambda p: tabular(p - jnp.array([0, 0, 0, 0, 0, 50.0]))
    step = next(fit(KEY, policy, jnp.zeros(6), nothing_seen, JS, n=8))
    assert step.metrics["skipped"] == 1
    assert step.metrics["acceptance"] == 0
    assert step.metrics["log_z"] == -math.inf
    assert math.isnan(step.metrics["log_potential"])
    np.testing.assert_array_equal(step.params, jnp.zeros(6))


def test_metrics_are_estimates_of_the_exact_values():
    """At 5 standard errors, for one large batch of an untrained policy."""
    n = 100_000
    step = next(fit(KEY, tabular, jnp.zeros(6), bandit, JS, n=n))
    p, log_target = jnp.full(6, 1 / 6), np.asarray(SPACE.log_target(target(bandit)))
    w = np.exp(np.asarray(SPACE.log_density(target(bandit)))) * 6
    ess = float(p @ w) ** 2 / float(p @ w**2)
    want = {
        "log_potential": float(p @ REWARD),
        "acceptance": 1.0,
        "kl_prior": float(p @ (jnp.log(p) - jnp.log(PROBS))),
        "reverse_kl": exact(divergences.reverse_kl, jnp.zeros(6)),
        "forward_kl": exact(divergences.forward_kl, jnp.zeros(6)),
        "log_z": float(SPACE.log_z(target(bandit))),
        "ess": ess,
    }
    scale = max(float(np.ptp(log_target)), float(np.ptp(REWARD)))
    for name, value in want.items():
        assert abs(step.metrics[name] - value) < 5 * scale / math.sqrt(n), name
    assert step.metrics["grad_norm"] > 0
    assert step.metrics["skipped"] == 0


def test_same_key_same_run_and_resume():
    """Bit for bit, also through a stop after step 3, with a stateful estimator."""
    estimator = estimators.f_dpg(
        divergences.jensen_shannon, log_z=estimators.running_log_z(), baseline=estimators.running()
    )
    run = partial(fit, KEY, tabular, target=bandit, estimator=estimator, n=16, steps=7)
    whole = list(run(params=jnp.zeros(6)))
    again = list(run(params=jnp.zeros(6)))
    stopped = list(run(params=jnp.zeros(6), steps=3))[-1]
    rest = list(run(params=stopped.params, resume=stopped.state))
    assert [s.index for s in rest] == [3, 4, 5, 6]
    for other in (again, rest):
        for a, b in zip(whole[-len(other) :], other, strict=True):
            np.testing.assert_array_equal(a.params, b.params)
            np.testing.assert_array_equal(a.outcomes, b.outcomes)
            assert a.metrics == b.metrics
    still = run(params=jnp.zeros(6), optimizer=optax.sgd(0.0))
    assert not np.array_equal(next(still).outcomes, next(still).outcomes)  # a new key every step
    different = fit(jax.random.key(1), tabular, jnp.zeros(6), bandit, estimator, n=16)
    assert not np.array_equal(whole[0].outcomes, next(different).outcomes)


def test_contexts():
    """A conditional policy and target: one log Z each, and every context reaches its own."""
    shift = jnp.array([-1.0, 0.0, 1.0])

    def program(shift):
        y = numpyro.sample("y", dist.Categorical(PROBS))
        numpyro.factor("reward", shift * REWARD[y])

    policy = lambda params, shift: tabular(params)
    step = last(
        fit(KEY, policy, jnp.zeros((3, 6)), program, JS, steps=250, contexts=(shift,),
            optimizer=optax.adam(optax.cosine_decay_schedule(0.2, 250)))
    )  # fmt: skip
    assert step.weights.policy.shape == (64, 3)
    density = jnp.log(PROBS)[:, None] + REWARD[:, None] * shift
    want = jax.nn.log_softmax(density, axis=0)
    got = jax.nn.log_softmax(step.params.T, axis=0)
    assert float(jnp.max(divergences.jensen_shannon(got, want))) < 3e-3


def test_several_sites():
    """A program as the policy of a program: outcomes are dicts of a discrete and a real site."""

    def model():
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        x = numpyro.sample("x", dist.Normal(2.0 * k, 1.0))
        numpyro.factor("reward", -0.5 * (x - 1.0) ** 2)

    def guide(params):
        k = numpyro.sample("k", dist.Bernoulli(logits=params["k"]))
        numpyro.sample("x", dist.Normal(params["x"][k], jnp.exp(params["log_scale"])))

    policy = lambda params: target(partial(guide, params)).given()
    start = {"k": jnp.array(0.0), "x": jnp.zeros(2), "log_scale": jnp.array(0.0)}
    step = last(
        fit(KEY, policy, start, model, estimators.vargrad(), steps=300, n=128,
            optimizer=optax.adam(optax.cosine_decay_schedule(0.05, 300)))
    )  # fmt: skip
    assert set(step.outcomes) == {"k", "x"}
    # The posterior: x | k ~ N((2k + 1)/2, 1/2); both k have the evidence N(1; 2k, 2).
    assert step.metrics["ess"] > 0.98
    np.testing.assert_allclose(step.params["x"], [0.5, 1.5], atol=0.1)
    np.testing.assert_allclose(jax.nn.sigmoid(step.params["k"]), 0.3, atol=0.05)
    np.testing.assert_allclose(jnp.exp(step.params["log_scale"]), math.sqrt(0.5), atol=0.05)


def three_tokens():
    y = numpyro.sample("y", dist.Categorical(PROBS).expand([3]).to_event(1))
    numpyro.factor("reward", REWARD[y].sum())


def nan_reward():
    y = numpyro.sample("y", dist.Categorical(PROBS))
    numpyro.factor("reward", jnp.where(y == 2, jnp.nan, 0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 1}, "at least 2 outcomes per context, got n=1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"target": nan_reward}, "log target has .* NaN"),
        (
            {"target": three_tokens, "policy": lambda p: dist.Categorical(logits=p).expand([3])},
            r"policy's log_prob has shape \(64, 3\).*to_event\(1\)",
        ),
        ({"target": three_tokens}, r"values of shape \(64,\).*needed is \('n', 3\)"),
        (
            {"policy": lambda p: tabular(jnp.where(jnp.arange(6) == 2, -jnp.inf, p)),
             "estimator": estimators.f_dpg(divergences.forward_kl),
             "proposal": dist.Categorical(PROBS)},
            "gives probability 0 to outcomes of the target",
        ),
        (
            {"policy": lambda p: tabular(jnp.where(p == 0, jnp.sqrt(p), p))},
            "gradient at step 0 is not finite",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(options, message):
    arguments = {
        "policy": tabular, "params": jnp.zeros(6), "target": bandit, "estimator": JS, **options,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        next(fit(KEY, **arguments))


def test_a_distribution_is_not_a_policy():
    with pytest.raises(TypeError, match="has no parameters"):
        fit(KEY, dist.Categorical(PROBS), jnp.zeros(6), bandit, JS)


def test_resume_with_other_arguments():
    step = next(fit(KEY, tabular, jnp.zeros(6), bandit, JS))
    other = estimators.trajectory_balance()
    with pytest.raises(ValueError, match="estimator state"):
        fit(KEY, tabular, step.params, bandit, other, resume=step.state)
    with pytest.raises(ValueError, match="optimizer state"):
        fit(KEY, tabular, step.params, bandit, JS, optimizer=optax.sgd(0.1), resume=step.state)


def test_assess_agrees_with_the_exact_values():
    """At 5 standard errors, features and off-policy draws included."""
    start = jnp.array([0.2, 0.1, 0.4, 0.2, 0.3, 0.5])
    policy, log_target = tabular(start), SPACE.log_target(target(bandit))
    p, q = jax.nn.softmax(start), jnp.exp(log_target)
    want = {
        "log_z": SPACE.log_z(target(bandit)),
        "reverse_kl": exact(divergences.reverse_kl, start),
        "forward_kl": exact(divergences.forward_kl, start),
        "kl_prior": p @ (jnp.log(p) - jnp.log(PROBS)),
        "policy_reward": p @ REWARD,
        "target_reward": q @ REWARD,
    }
    for proposal in (None, dist.Categorical(PROBS)):
        tree = assess(
            KEY, policy, bandit, n=4000, proposal=proposal, features={"reward": lambda y: REWARD[y]}
        )
        got = diagnostics.estimates(tree)
        for name, value in want.items():
            assert abs(got[name].value - float(value)) < 5 * got[name].se, name
        assert tree["outcomes"]["y"].shape == (1, 4000, 1)


def test_assess_contexts():
    def program(shift):
        y = numpyro.sample("y", dist.Categorical(PROBS))
        numpyro.factor("reward", shift * REWARD[y])

    shift = jnp.array([0.0, 1.0])
    tree = assess(
        KEY, tabular(jnp.zeros((2, 6))), program, n=2000, contexts=(shift,), labels=["a", "b"],
        features={"shifted": lambda y, shift: REWARD[y] + shift},
    )  # fmt: skip
    log_z = tree["diagnostics/contexts"]["log_z"].sel(statistic="value")
    want = jax.nn.logsumexp(jnp.log(PROBS)[:, None] + REWARD[:, None] * shift, axis=0)
    np.testing.assert_allclose(log_z, want, atol=0.1)
    assert list(log_z.context.values) == ["a", "b"]


FLOAT32 = """
import warnings; warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, optax
from infer_align import diagnostics, divergences, f_dpg
from infer_align.jax import assess, fit, memoryless

logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))

def program():
    y = numpyro.sample("y", dist.Categorical(logits=logits).expand([20]).to_event(1))
    numpyro.factor("reward", 0.5 * jnp.sum(y == 2) + 1e4)      # log Z is huge, and harmless

policy = lambda p: memoryless(p, length=20)
start = policy(logits)
assert start.log_prob(jnp.zeros(20, int)).dtype == jnp.float32
*_, step = fit(jax.random.key(0), policy, logits, program, f_dpg(divergences.jensen_shannon),
               steps=60, optimizer=optax.adam(0.03))
assert step.params.dtype == jnp.float32 and not jax.config.jax_enable_x64
assert all(np.all(np.isfinite(w)) and w.dtype == np.float64 for w in step.weights[:2])
before, after = (
    diagnostics.estimates(assess(jax.random.key(1), p, program, n=2000))["reverse_kl"]
    for p in (start, policy(step.params))
)
assert isinstance(after.value, float) and after.high < before.low, (before, after)
tree = assess(jax.random.key(2), start, program, n=10)
assert tree["sample_stats"]["log_weight"].dtype == np.float64
print("ok")
"""


def test_without_x64():
    """Float32 JAX: the library does not switch precision, and weights are float64 in NumPy."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", FLOAT32], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "ok", done.stderr
