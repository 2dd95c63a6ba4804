"""Every (divergence x estimator x library) cell holds its declared expectation, by enumeration."""

import itertools
import math

import numpy as np
import pytest

from infer_align import divergences, estimators, testing
from infer_align.estimators import Claim, LogWeights
from tests.libraries import jax, jnp, torch

POLICY = np.log([0.36, 0.24, 0.20, 0.12, 0.05, 0.03])
TARGET = np.log([0.10, 0.32, 0.05, 0.28, 0.17, 0.08])
PROPOSAL = np.log([0.10, 0.15, 0.30, 0.20, 0.15, 0.10])
HARD = np.array([*np.log([0.15, 0.35, 0.22, 0.28]), -math.inf, -math.inf])
SHIFT = 1.7  # log Z of the unnormalised density
LIBRARIES = {"numpy": np, "jax": jnp, "torch": torch}
LOG_Z = {
    "known": lambda: estimators.known_log_z(SHIFT),
    "batch": estimators.batch_log_z,
    "batch_loo": lambda: estimators.batch_log_z(leave_one_out=True),
    "running": estimators.running_log_z,
    "per_context": lambda: estimators.per_context_log_z(3),
}
BASELINES = {
    "none": estimators.none,
    "dpg": estimators.dpg,
    "mean": estimators.mean,
    "leave_one_out": estimators.leave_one_out,
    "running": estimators.running,
}


def array(xp, x):
    return None if x is None else xp.asarray(x)


def logit_gradient(loss, log_policy, log_density, log_proposal):
    """Gradient of the exact loss in the logits of a softmax policy, by torch or JAX autodiff."""
    if isinstance(log_policy, torch.Tensor):
        logits = log_policy.clone().requires_grad_()
        value = loss(torch.log_softmax(logits, 0), log_density, log_proposal)
        return torch.autograd.grad(value, logits)[0].numpy()
    density = jnp.asarray(log_density)
    proposal = None if log_proposal is None else jnp.asarray(log_proposal)
    of_logits = lambda x: loss(jax.nn.log_softmax(x), density, proposal)
    return np.asarray(jax.grad(of_logits)(jnp.asarray(log_policy)))


def expected(estimator, xp, policy, density, proposal, n=2, state=None):
    arrays = [array(xp, a) for a in (policy, density, proposal)]
    c = testing.expected_coefficients(estimator, *arrays, n=n, state=state)
    return np.asarray(testing.expected_gradient(c, arrays[0]))


def earlier_state(estimator, xp, policy, density, proposal):
    """The state after a step whose outcomes are 1, 3, 3."""
    index = np.array([1, 3, 3])
    weights = LogWeights(
        xp.asarray(policy[index]),
        xp.asarray(density[index]),
        None if proposal is None else xp.asarray(proposal[index]),
        xp.asarray(np.array(0)),
    )
    return estimator.update(estimator.init(), weights).state


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("off_policy", [False, True], ids=["on", "off"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("log_z", LOG_Z)
@pytest.mark.parametrize("divergence", divergences.ALL, ids=lambda d: d.name)
def test_f_dpg_expectation(divergence, log_z, baseline, off_policy, library):
    """Each cell claims an expectation, and the sum over all 36 batches is that."""
    xp, n = LIBRARIES[library], 2
    rule, base = LOG_Z[log_z](), BASELINES[baseline]()
    estimator = estimators.f_dpg(divergence, log_z=rule, baseline=base)
    proposal = PROPOSAL if off_policy else None
    density = TARGET + SHIFT
    claim = estimator.off_policy if off_policy else estimator.on_policy
    if claim is Claim.REFUSED:
        with pytest.raises(ValueError, match=r"leave_one_out\(\)"):
            expected(estimator, xp, POLICY, density, proposal)
        return
    state = earlier_state(estimator, xp, POLICY, density, proposal)
    got = expected(estimator, xp, POLICY, density, proposal, n, state)
    exact = logit_gradient(estimator.loss, POLICY, density, proposal)
    want = declared(divergence, estimator, claim, log_z, baseline, density, proposal, n)
    np.testing.assert_allclose(got, exact if want is None else want, rtol=1e-9, atol=1e-12)


def gradient_at(divergence, log_z):
    """The gradient field with a fixed number in place of log Z: sum of pi f'(t) grad log pi."""
    c = np.exp(POLICY) * np.asarray(divergence.f_prime(POLICY - (TARGET + SHIFT) + log_z))
    return c - np.exp(POLICY) * c.sum()


def declared(divergence, estimator, claim, log_z, baseline, density, proposal, n):
    """The expectation by an independent route, or None where it is the exact gradient."""
    drawn = np.exp(POLICY if proposal is None else proposal)
    w = np.exp(density) / drawn
    if log_z in ("running", "per_context"):  # earlier outcomes 1, 3, 3
        field = gradient_at(divergence, np.log(w[[1, 3, 3]].mean()))
        return field if baseline != "mean" else (1 - 1 / n) * field
    if log_z == "batch_loo" and baseline != "mean":  # the other outcome's weight
        return sum(drawn[j] * gradient_at(divergence, np.log(w[j])) for j in range(6))
    if log_z == "known":
        return None if claim is Claim.UNBIASED else (1 - 1 / n) * gradient_at(divergence, SHIFT)
    return by_hand(divergence, log_z, baseline, density, proposal, n)


def by_hand(divergence, log_z, baseline, density, proposal, n):
    """The remaining cells (batch Z, or a mean baseline with leave-one-out Z), in plain loops."""
    drawn = POLICY if proposal is None else proposal
    total = np.zeros(6)
    for batch in itertools.product(range(6), repeat=n):
        y = np.array(batch)
        w, v = np.exp(density[y] - drawn[y]), np.exp(POLICY[y] - drawn[y])
        for i in range(n):
            others = [j for j in range(n) if j != i]
            z = w[others].mean() if log_z == "batch_loo" else w.mean()
            signal = np.asarray(divergence.f_prime(POLICY[y] - density[y] + np.log(z)))
            at_inf = divergence.f_prime_at_inf
            b = {
                "none": at_inf if math.isfinite(at_inf) else 0.0,
                "dpg": 0.0,
                "mean": signal.mean(),
                "leave_one_out": np.average(signal[others], weights=v[others]),
                "running": earlier_mean(divergence, density, proposal, log_z),
            }[baseline]
            c = v[i] * (signal[i] - b) / n
            total += np.exp(drawn[y].sum()) * c * ((np.arange(6) == y[i]) - np.exp(POLICY))
    return total


def earlier_mean(divergence, density, proposal, log_z):
    drawn = POLICY if proposal is None else proposal
    y = np.array([1, 3, 3])
    w, v = np.exp(density[y] - drawn[y]), np.exp(POLICY[y] - drawn[y])
    signal = np.asarray(divergence.f_prime(POLICY[y] - density[y] + np.log(w.mean())))
    return np.average(signal, weights=v)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("estimator", estimators.ALL, ids=lambda e: e.name)
def test_contract(estimator, library):
    """Every listed estimator keeps its claim: the public check that users run on their own."""
    testing.check_estimator(estimator, logit_gradient, LIBRARIES[library], n=3)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_reinforce_expectation(baseline, library):
    """REINFORCE gives the reverse KL gradient, (1 - 1/n) of it with the batch mean."""
    estimator = estimators.reinforce(baseline=BASELINES[baseline]())
    xp = LIBRARIES[library]
    exact = logit_gradient(divergences_loss(divergences.reverse_kl), POLICY, TARGET, None)
    scale = 0.5 if baseline == "mean" else 1.0
    state = earlier_state(estimator, xp, POLICY, TARGET + SHIFT, None)
    got = expected(estimator, xp, POLICY, TARGET + SHIFT, None, state=state)
    np.testing.assert_allclose(got, scale * exact, rtol=1e-9, atol=1e-12)
    if baseline != "mean":
        got = expected(estimator, xp, POLICY, TARGET + SHIFT, PROPOSAL)
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12)


def divergences_loss(divergence):
    return lambda log_policy, log_density, q: divergence(log_policy, log_density)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("value", [0.0, SHIFT, -3.0])
def test_trajectory_balance_expectation(value, library):
    """On-policy any log Z gives the KL gradient; off-policy the gradient of its own loss."""
    xp = LIBRARIES[library]
    estimator = estimators.trajectory_balance(log_z=estimators.known_log_z(value))
    exact = logit_gradient(divergences_loss(divergences.reverse_kl), POLICY, TARGET, None)
    got = expected(estimator, xp, POLICY, TARGET + SHIFT, None)
    np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12)
    q, d = np.exp(PROPOSAL), POLICY - TARGET - SHIFT + value
    own = q * d - np.exp(POLICY) * (q * d).sum()
    got = expected(estimator, xp, POLICY, TARGET + SHIFT, PROPOSAL)
    np.testing.assert_allclose(got, own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_learnt_log_z_descends_its_loss(library):
    """log Z moves by minus the learning rate times the mean residual, per context."""
    xp = LIBRARIES[library]
    rule = estimators.learnt_log_z(np.array([0.5, -1.0, 2.0]), learning_rate=0.1)
    estimator = estimators.trajectory_balance(log_z=rule)
    y = np.array([[0, 1], [2, 5]])
    weights = LogWeights(
        xp.asarray(POLICY[y]), xp.asarray(TARGET[y]), context=xp.asarray(np.array([2, 0]))
    )
    c, state, _ = estimator.update(estimator.init(), weights)
    residual = (POLICY - TARGET)[y] + np.array([2.0, 0.5])
    np.testing.assert_allclose(np.asarray(c), residual / 4)
    step = residual.mean(0) / 2
    want = np.array([0.5 - 0.1 * step[1], -1.0, 2.0 - 0.1 * step[0]])
    np.testing.assert_allclose(np.asarray(state["log_z"]["log_z"]), want)


@pytest.mark.parametrize("library", LIBRARIES)
def test_vargrad_is_its_own_gradient_off_policy(library):
    """Off-policy the log-variance loss has its own gradient, the same for any q and no weights."""
    got = expected(estimators.vargrad(), LIBRARIES[library], POLICY, TARGET, PROPOSAL, n=3)
    q, d = np.exp(PROPOSAL), POLICY - TARGET
    c = q * (d - q @ d)
    np.testing.assert_allclose(got, c - np.exp(POLICY) * c.sum(), rtol=1e-9, atol=1e-12)


BOUNDED = [d for d in divergences.ALL if d.bounded_where_target_is_zero]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("baseline", ["none", "dpg", "leave_one_out", "running"])
@pytest.mark.parametrize("divergence", BOUNDED, ids=lambda d: d.name)
def test_hard_constraint_expectation(divergence, baseline, library):
    """Where the target is 0 the leak term counts: the exact gradient still, with no NaN."""
    rule, base = estimators.known_log_z(0.0), BASELINES[baseline]()
    estimator = estimators.f_dpg(divergence, log_z=rule, baseline=base)
    for proposal in (None, PROPOSAL):
        got = expected(estimator, LIBRARIES[library], POLICY, HARD, proposal)
        want = logit_gradient(estimator.loss, POLICY, HARD, None)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_identities():
    """Identities of the literature, coefficient by coefficient."""
    y = np.array([0, 3, 4, 1])
    w = LogWeights(POLICY[y], TARGET[y] + SHIFT)
    off = w._replace(proposal=PROPOSAL[y])
    c = lambda e, w: np.asarray(e.update(e.init(), w).coefficients)
    known = estimators.known_log_z(SHIFT)
    np.testing.assert_allclose(c(estimators.vargrad(), w), c(estimators.reinforce(), w))
    reverse = estimators.f_dpg(divergences.reverse_kl)
    np.testing.assert_allclose(c(reverse, w), c(estimators.reinforce(), w))
    ratio, weight = off.importance, np.exp(TARGET[y] - PROPOSAL[y])
    raw = estimators.f_dpg(divergences.forward_kl, log_z=known, baseline=estimators.none())
    np.testing.assert_allclose(c(raw, off), -weight / 4)
    with_baseline = estimators.f_dpg(divergences.forward_kl, log_z=known, baseline=estimators.dpg())
    np.testing.assert_allclose(c(with_baseline, off), (ratio - weight) / 4)


def test_alpha_dpg_pseudo_reward():
    """alpha-DPG's min((p/pi)^(1-a) - 1, 10) is alpha(a) clipped at 10/(1-a), up to 1/(1-a)."""
    a, y = 0.25, np.arange(6)
    log_p = POLICY + np.array([5.0, -1.0, 0.3, 2.0, -4.0, 3.0])
    rule, base = estimators.known_log_z(0.0), estimators.dpg()
    estimator = estimators.f_dpg(divergences.alpha(a), log_z=rule, baseline=base, clip=10 / (1 - a))
    c, _, info = estimator.update(estimator.init(), LogWeights(POLICY[y], log_p[y]))
    reward = np.minimum(np.exp(log_p - POLICY) ** (1 - a) - 1, 10)
    np.testing.assert_allclose(-c * 6 * (1 - a), reward)
    unclipped = (np.exp(log_p - POLICY) ** (1 - a) - 1) / (1 - a)
    gap = np.abs(unclipped - reward / (1 - a)).sum() / 6
    np.testing.assert_allclose(info["coefficient_bias"], gap)


def test_truncation_reports_its_bias():
    """The importance ratio is capped, and the summed change of the coefficients is reported."""
    y = np.arange(6)
    w = LogWeights(POLICY[y], TARGET[y], PROPOSAL[y])
    rule, base = estimators.known_log_z(0.0), estimators.dpg()
    free, capped = (
        estimators.f_dpg(divergences.jensen_shannon, log_z=rule, baseline=base, truncate=t)
        for t in (None, 1.2)
    )
    signal = np.asarray(divergences.jensen_shannon.f_prime(POLICY - TARGET))
    ratio = np.exp(POLICY - PROPOSAL)
    c, _, info = capped.update(capped.init(), w)
    np.testing.assert_allclose(c, np.minimum(ratio, 1.2) * signal / 6)
    loose = free.update(free.init(), w).coefficients
    np.testing.assert_allclose(info["coefficient_bias"], np.abs(c - loose).sum())
    assert capped.on_policy is capped.off_policy is Claim.BIASED


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("estimator", estimators.ALL, ids=lambda e: e.name)
def test_contexts_are_separate_problems(estimator, library):
    """A batch of contexts gives each context's own coefficients over the number of contexts."""
    xp = LIBRARIES[library]
    y = np.array([[0, 5], [3, 3], [4, 1], [1, 0]])
    policy, density = POLICY[y] + np.array([0.0, -0.1]), TARGET[y] + np.array([0.0, 2.0])
    if "learnt" in estimator.name:  # one log Z for two contexts would be wrong: one for each
        estimator = estimators.trajectory_balance(log_z=estimators.learnt_log_z(np.zeros(2)))
    together = estimator.update(
        estimator.init(), LogWeights(*map(xp.asarray, (policy, density)), None, xp.arange(2))
    ).coefficients
    for k in range(2):
        one = LogWeights(xp.asarray(policy[:, k]), xp.asarray(density[:, k]), None, xp.asarray(0))
        alone = estimator.update(estimator.init(), one).coefficients
        np.testing.assert_allclose(2 * np.asarray(together)[:, k], np.asarray(alone), rtol=1e-12)


def test_no_accepted_outcome_is_skipped_and_said():
    """With every weight 0 the batch Z is undefined: zero coefficients, and info says so."""
    estimator = estimators.f_dpg(divergences.jensen_shannon)
    w = LogWeights(POLICY[:3], np.full(3, -math.inf))
    c, _, info = estimator.update(estimator.init(), w)
    assert (c == 0).all()
    assert info["undefined"] == 1.0
    known = estimators.f_dpg(
        divergences.jensen_shannon, log_z=estimators.known_log_z(0.0), baseline=estimators.dpg()
    )
    c, _, info = known.update(known.init(), w)
    np.testing.assert_allclose(c, 0.5 * np.log(2) / 3)  # with a known Z nothing is skipped
    assert info["undefined"] == 0.0


def test_check_refuses_what_cannot_be_right():
    """Each refusal says what was given and what to do."""
    y = np.arange(6)
    hard = LogWeights(POLICY[y], HARD[y])
    good = LogWeights(POLICY[y], TARGET[y])
    for estimator in (estimators.vargrad(), estimators.f_dpg(divergences.pearson_chi2)):
        with pytest.raises(ValueError, match=r"rejects 33.3% of the outcomes; use f_dpg with"):
            estimators.check(estimator, hard)
    estimators.check(estimators.f_dpg(divergences.squared_hellinger), hard)
    estimators.check(estimators.vargrad(), LogWeights(HARD[y], HARD[y], PROPOSAL[y]))
    bad = np.where(y < 2, np.nan, TARGET)
    with pytest.raises(ValueError, match="2 of 6 entries that are NaN"):
        estimators.check(estimators.reinforce(), good._replace(target=bad))
    missing = LogWeights(HARD[y], TARGET[y], PROPOSAL[y])
    with pytest.raises(ValueError, match="probability 0 to outcomes of the target"):
        estimators.check(estimators.f_dpg(divergences.forward_kl), missing)
    with pytest.raises(ValueError, match=r"at least 2 outcomes per context, got 1; raise n"):
        estimators.check(estimators.vargrad(), LogWeights(POLICY[:1], TARGET[:1]))
    with pytest.raises(ValueError, match="batch-mean baseline is biased off-policy"):
        estimators.check(
            estimators.reinforce(baseline=estimators.mean()), good._replace(proposal=PROPOSAL)
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: estimators.f_dpg(divergences.forward_kl, log_z=estimators.learnt_log_z()),
            "log Z",
        ),
        (lambda: estimators.trajectory_balance(log_z=estimators.batch_log_z()), r"vargrad\(\)"),
        (lambda: estimators.f_dpg(divergences.forward_kl, clip=-1.0), "clip must be positive"),
        (lambda: estimators.running(decay=1.5), r"decay must lie in \(0, 1\), got 1.5"),
        (lambda: estimators.per_context_log_z(0), "at least 1, got 0"),
        (lambda: estimators.learnt_log_z(learning_rate=0.0), "must be positive, got 0"),
    ],
)
def test_wrong_choices_raise(build, message):
    """Choices that cannot be right are refused where they are made."""
    with pytest.raises(ValueError, match=message):
        build()


def test_batch_log_z_bias_shrinks_like_one_over_n():
    """The plain batch Z is consistent: its gradient error falls by about half as n doubles."""
    estimator = estimators.f_dpg(divergences.jensen_shannon, baseline=estimators.dpg())
    exact = logit_gradient(estimator.loss, POLICY, TARGET, None)
    error = [
        np.linalg.norm(expected(estimator, np, POLICY, TARGET, None, n=n) - exact) for n in (2, 4)
    ]
    assert 1.5 < error[0] / error[1] < 3.0
