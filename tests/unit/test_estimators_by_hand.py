"""Second-order quantities of the estimators, against numbers computed by hand.

Decays, pooling, shares and reported biases: what changes no expectation, so that no enumeration
sees it.
"""

import math

import numpy as np
import pytest

from infer_align import divergences, estimators
from infer_align.estimators import LogWeights
from tests.libraries import jax, jnp, torch

LIBRARIES = {"numpy": np, "jax": jnp, "torch": torch}


def weighing(*weights, context=None, xp=np):
    """On-policy log-weights with these P/π, a column for each context."""
    w = np.array(weights, dtype=float)
    ids = None if context is None else xp.asarray(np.array(context))
    return LogWeights(xp.asarray(np.zeros(w.shape)), xp.asarray(np.log(w)), None, ids)


def run(rule, *batches):
    """exp log Z that each batch is given, and the last state."""
    state, out = rule.init(), []
    for batch in batches:
        log_z, state = rule.update(state, batch)
        out.append(np.exp(np.asarray(log_z)[0]))
    return out, state


# log Z, remembered


@pytest.mark.parametrize("library", LIBRARIES)
def test_running_log_z_fades_total_and_count(library):
    """Means 2, 8, 5 at decay 1/2: before the third (8 + 2/2)/(1 + 1/2) = 6, then 5.25/1.75...."""
    xp = LIBRARIES[library]
    rule = estimators.running_log_z(decay=0.5)
    batches = [weighing(1, 3, xp=xp), weighing(6, 10, xp=xp), weighing(4, 6, xp=xp)]
    given, state = run(rule, *batches, weighing(1, 1, xp=xp))
    # total 2, 8 + 1 = 9, 5 + 4.5 = 9.5; count 1, 1.5, 1.75
    np.testing.assert_allclose(given, [2.0, 2.0, 6.0, 9.5 / 1.75], rtol=1e-12)
    np.testing.assert_allclose(float(state["count"]), 1 + 1.75 / 2)
    total = np.exp(float(state["origin"] + state["log_mean"])) * float(state["count"])
    np.testing.assert_allclose(total, 1 + 9.5 / 2)


def test_running_log_z_counts_all_steps_alike_without_decay():
    given, _ = run(estimators.running_log_z(), weighing(1, 3), weighing(6, 10), weighing(4, 6))
    np.testing.assert_allclose(given, [2.0, 2.0, 5.0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_per_context_log_z_fades_with_visits_only(library):
    """A visit is worth 1/2 of the next one; a context that is absent keeps all it has."""
    xp = LIBRARIES[library]
    rule = estimators.per_context_log_z(3, decay=0.5)
    batches = [
        weighing([2, 9], [2, 9], context=[0, 1], xp=xp),
        weighing([4, 1], [4, 1], context=[1, 2], xp=xp),
        weighing([7, 5], [9, 5], context=[0, 1], xp=xp),
        weighing([1, 1], [1, 1], context=[1, 0], xp=xp),
    ]
    given, state = run(rule, *batches)
    # context 0: total 2, (absent) 2, 8 + 1 = 9; count 1, 1, 1.5
    # context 1: total 9, 4 + 4.5 = 8.5, 5 + 4.25 = 9.25; count 1, 1.5, 1.75
    want = [[2, 9], [9, 1], [2, 8.5 / 1.5], [9.25 / 1.75, 9 / 1.5]]
    np.testing.assert_allclose(given, want, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(state["count"]), [1.75, 1.875, 1.0], rtol=1e-12)


def test_a_context_in_two_columns_counts_twice():
    """Both columns are one visit: their means are added, and it is counted by two."""
    rule = estimators.per_context_log_z(2, decay=0.5)
    given, _ = run(
        rule,
        weighing([2, 6], [2, 6], context=[1, 1]),
        weighing([4, 4], [4, 4], context=[1, 1]),
        weighing([9], [9], context=[1]),
        weighing([1], [1], context=[1]),
    )
    # total 8, 8 + 4 = 12, 9 + 6 = 15; count 2, 2 + 1 = 3, 1 + 1.5 = 2.5
    np.testing.assert_allclose(given[:2], [[2, 6], [4, 4]], rtol=1e-12)
    np.testing.assert_allclose(given[2:], [[4], [6]], rtol=1e-12)


def test_log_z_rules_use_the_batch_where_nothing_was_accepted_before():
    rule = estimators.running_log_z()
    none = LogWeights(np.zeros(2), np.full(2, -math.inf))
    given, _ = run(rule, none, weighing(1, 3), weighing(1, 1))
    np.testing.assert_allclose(given, [0.0, 2.0, 1.0])  # then 2/2: a step of weights 0 counts


def test_learnt_log_z_is_one_average_of_all_columns():
    """The step of a context is its mean residual over the number of columns, absent ones stay."""
    rule = estimators.learnt_log_z(np.array([1.0, 2.0, 3.0]), learning_rate=0.5)
    d = np.array([[0.5, -1.0, 2.0], [1.5, -3.0, 4.0]])  # log π − log P
    weights = LogWeights(d, np.zeros((2, 3)), context=np.array([0, 2, 2]))
    log_z, state = rule.update(rule.init(), weights)
    np.testing.assert_allclose(log_z, [[1.0, 3.0, 3.0]])
    # context 0: 1 + 1 = 2; context 2: (−2 + 3) + (3 + 3) = 7; both over 3 columns
    np.testing.assert_allclose(state["log_z"], [1 - 0.5 * 2 / 3, 2.0, 3 - 0.5 * 7 / 3])


# Which context is which


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_known_log_z_is_found_by_the_id(library):
    """Prompts (3, 0) of four with log Z (0, 1, 8, 9): 9 and 0, not 0 and 1."""
    xp = LIBRARIES[library]
    rule = estimators.known_log_z(np.array([0.0, 1.0, 8.0, 9.0]))
    log_z, _ = rule.update({}, weighing([1, 1], [1, 1], context=[3, 0], xp=xp))
    np.testing.assert_allclose(np.asarray(log_z), [[9.0, 0.0]])
    alone, _ = rule.update({}, weighing(1, 1, context=2, xp=xp))
    np.testing.assert_allclose(np.asarray(alone), [8.0])


@pytest.mark.parametrize("context", [None, [0, 4], [-1, 0]])
def test_a_known_log_z_of_other_contexts_is_refused(context):
    rule = estimators.known_log_z(np.array([0.0, 1.0, 8.0, 9.0]))
    message = r"pass LogWeights\(context=ids\)" if context is None else r"contexts \[(4|-1)\]"
    with pytest.raises(ValueError, match=message):
        rule.update({}, weighing([1, 1], [1, 1], context=context))


def test_without_ids_the_columns_are_all_contexts_in_order():
    rule = estimators.known_log_z(np.array([0.0, 8.0]))
    log_z, _ = rule.update({}, weighing([1, 1], [1, 1]))
    np.testing.assert_allclose(log_z, [[0.0, 8.0]])
    given, _ = run(estimators.per_context_log_z(2), weighing([2, 3], [2, 3]))
    np.testing.assert_allclose(given, [[2, 3]])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("now", [[2, 3], [1, 0], None])
def test_running_log_z_refuses_other_contexts(library, now):
    """True log Z (0, 0, 8, 8): prompts 2 and 3 would be scored with those of 0 and 1."""
    xp = LIBRARIES[library]
    rule = estimators.running_log_z()
    _, state = rule.update(rule.init(), weighing([1, 1], [1, 1], context=[0, 1], xp=xp))
    with pytest.raises(ValueError, match=r"contexts \[0, 1\] before.*per_context_log_z"):
        rule.update(state, weighing([3000, 3000], [3000, 3000], context=now, xp=xp))
    log_z, _ = rule.update(state, weighing([3, 3], [3, 3], context=[0, 1], xp=xp))
    np.testing.assert_allclose(np.asarray(log_z), 0.0)


def test_under_jit_the_log_z_of_another_context_is_nan():
    rule, first = estimators.running_log_z(), jnp.array([0, 1])
    _, state = rule.update(rule.init(), weighing([1, 1], [1, 1], context=[0, 1], xp=jnp))
    update = jax.jit(lambda s, ids: rule.update(s, LogWeights(zeros, zeros, None, ids))[0])
    zeros = jnp.zeros((2, 2))
    assert np.isfinite(update(state, first)).all()
    assert np.isnan(update(state, jnp.array([0, 2]))).tolist() == [[False, True]]
    known = estimators.known_log_z(jnp.array([0.0, 5.0]))
    look = jax.jit(lambda ids: known.update({}, LogWeights(zeros, zeros, None, ids))[0])
    np.testing.assert_allclose(look(jnp.array([1, 0])), [[5.0, 0.0]])
    assert np.isnan(look(jnp.array([1, 2]))).tolist() == [[False, True]]


def test_a_default_learnt_log_z_for_two_prompts_says_what_to_write():
    estimator = estimators.trajectory_balance()
    with pytest.raises(ValueError, match=r"1 context .*contexts \[1\].*learnt_log_z\(array"):
        estimator.update(estimator.init(), weighing([1, 1], [1, 1], context=[0, 1]))


# Baselines


def test_a_running_baseline_fades_total_and_count():
    """Signals 1, 4, 2 at decay 1/4: before the third (4 + 1/4)/(1 + 1/4) = 3.4.

    The first has nothing before it, and takes the other outcomes of its batch.
    """
    rule = estimators.running(decay=0.25)
    state, given = rule.init(), []
    for level in (1.0, 4.0, 2.0, 0.0):
        signal, ratio = np.full((3, 1, 2), level), np.ones((3, 2))
        b, state = rule.update(state, signal, ratio, math.inf)
        given.append(b)
    # total 1, 4.25, 2 + 4.25/4; count 1, 1.25, 1 + 1.25/4
    want = [1.0, 1.0, 4.25 / 1.25, (2 + 4.25 / 4) / (1 + 1.25 / 4)]
    np.testing.assert_allclose([b[0] for b in given], np.array(want)[:, None] * np.ones(2))
    assert float(state["count"]) == pytest.approx(1 + (1 + 1.25 / 4) / 4)


def test_a_running_baseline_pools_weighted_signals_over_contexts():
    """Σ (π/q) f' / Σ π/q over outcomes and contexts, a step worth its mean π/q."""
    rule = estimators.running()
    ratio = np.array([[1.0, 2.0], [0.0, 1.0]])
    signal = np.array([[[3.0, 4.0]], [[math.inf, 5.0]]])  # π/q = 0 takes no part
    _, state = rule.update(rule.init(), signal, ratio, math.inf)
    assert float(state["origin"] + state["mean"]) == (3 + 8 + 0 + 5) / (1 + 2 + 0 + 1)
    assert float(state["count"]) == 1.0
    b, state = rule.update(state, np.full((2, 1, 2), 10.0), 3 * np.ones((2, 2)), math.inf)
    np.testing.assert_allclose(b, 4.0)
    assert float(state["origin"] + state["mean"]) == (4 * 1 + 10 * 3) / 4


def test_the_first_of_a_running_baseline_has_no_mean_to_take():
    """One outcome a context has no others: 0, and the next step has its signal."""
    rule, one = estimators.running(), np.ones((1, 2))
    b, state = rule.update(rule.init(), np.full((1, 1, 2), 7.0), one, math.inf)
    assert (b == 0).all()
    assert (rule.update(state, np.full((1, 1, 2), 7.0), one, math.inf)[0] == 7).all()


def test_leave_one_out_is_weighted_by_the_others():
    """Off-policy b_0 = (3·20 + 1·60)/(3 + 1) = 30, and no more of its own weight."""
    ratio, signal = np.array([0.5, 3.0, 1.0]), np.array([[10.0], [20.0], [60.0]])
    b, _ = estimators.leave_one_out().update({}, signal, ratio, math.inf)
    np.testing.assert_allclose(b, [30.0, 65 / 1.5, 65 / 3.5])
    wide = np.broadcast_to(signal, (3, 3))
    np.testing.assert_allclose(estimators.leave_one_out().update({}, wide, ratio, math.inf)[0], b)


def test_leave_one_out_of_a_dominating_outcome():
    """Where one π/q is nearly all of their sum, its others are still what they are; of none, 0."""
    signal = np.array([[1.0], [5.0], [7.0]])
    for small in (1e-20, 1e-200):
        ratio = np.array([small, 1.0, 3 * small])
        b, _ = estimators.leave_one_out().update({}, signal, ratio, math.inf)
        np.testing.assert_allclose(b, [5.0, (1 + 3 * 7) / 4, 5.0])
    b, _ = estimators.leave_one_out().update({}, signal, np.array([0.0, 1.0, 0.0]), math.inf)
    np.testing.assert_allclose(b, [5.0, 0.0, 5.0])


# What an update reports


def test_the_share_of_undefined_log_z_and_its_mean():
    """One of three contexts accepts nothing: undefined 1/3, log Z averaged as 0 there."""
    four, two = math.log(4.0), math.log(2.0)
    target = np.array([[four, -math.inf, four], [two, -math.inf, two]])
    estimator = estimators.f_dpg(divergences.jensen_shannon)
    c, _, info = estimator.update(estimator.init(), LogWeights(np.zeros((2, 3)), target))
    assert float(info["undefined"]) == pytest.approx(1 / 3)
    assert float(info["log_z"]) == pytest.approx(2 * math.log(3.0) / 3)
    assert (c[:, 1] == 0).all()


def test_coefficient_bias_of_truncation_and_clipping_together():
    """π/q = (1/2, 4), f' = log t = (−2, 1), truncate 2, clip 1: by hand with no baseline."""
    w = LogWeights(np.log([0.5, 4.0]), np.log([0.5, 4.0]) - [-2.0, 1.0], np.zeros(2))
    known, none = estimators.known_log_z(0.0), estimators.none()
    estimator = estimators.f_dpg(
        divergences.reverse_kl, log_z=known, baseline=none, truncate=2.0, clip=1.0
    )
    c, _, info = estimator.update(estimator.init(), w)
    np.testing.assert_allclose(c, [0.5 * -1 / 2, 2 * 1 / 2])  # exact: −.5 and 2
    assert float(info["coefficient_bias"]) == pytest.approx(0.25 + 1.0)


def test_coefficient_bias_is_reported_with_an_exact_estimators_baseline():
    """With leave-one-out both baselines count: exact b = (2, 10/3, 2/3), kept (8/3, 10/3, 0.4)."""
    policy = np.log([0.5, 4.0, 1.0])
    w = LogWeights(policy, policy - [-2.0, 1.0, 6.0], np.zeros(3))
    estimator = estimators.reinforce(truncate=2.0)
    c, _, info = estimator.update(estimator.init(), w)
    # exact b: (4 + 6)/5 = 2, (−1 + 6)/1.5 = 10/3, (−1 + 4)/4.5 = 2/3
    # kept b: (2 + 6)/3 = 8/3, 10/3, (−1 + 2)/2.5 = 0.4
    exact = [0.5 * (-2 - 2) / 3, 4 * (1 - 10 / 3) / 3, (6 - 2 / 3) / 3]
    np.testing.assert_allclose(c, [0.5 * (-2 - 8 / 3) / 3, 2 * (1 - 10 / 3) / 3, 5.6 / 3])
    assert float(info["coefficient_bias"]) == pytest.approx(np.abs(c - exact).sum())


def test_the_states_of_an_exact_estimator_do_not_see_its_bounds():
    """A running baseline remembers the kept signal, and no state of the one that is reported."""
    w = LogWeights(np.log([0.5, 4.0]), np.log([0.5, 4.0]) - [-2.0, 1.0], np.zeros(2))
    estimator = estimators.reinforce(baseline=estimators.running(), truncate=2.0)
    _, state, _ = estimator.update(estimator.init(), w)
    assert float(sum(state["baseline"][k] for k in ("origin", "mean"))) == pytest.approx(
        (0.5 * -2 + 2 * 1) / 2.5
    )


def test_trajectory_balance_reports_its_log_z():
    estimator = estimators.trajectory_balance(log_z=estimators.known_log_z(np.array([1.0, 4.0])))
    _, _, info = estimator.update(estimator.init(), weighing([1, 1], [1, 1], context=[0, 1]))
    assert float(info["log_z"]) == 2.5


# What cannot be right

E = estimators
PLAIN = lambda f: getattr(f, "__wrapped__", f)
"""Without the checks of types that the tests install: a user's own call."""
WRONG = {
    "a name": (lambda: PLAIN(E.f_dpg)("jensen_shannon"), "an FDivergence, got .jensen_shannon"),
    "an estimator": (lambda: PLAIN(E.f_dpg)(E.vargrad()), "must be an FDivergence"),
    "a baseline that is not called": (
        lambda: PLAIN(E.reinforce)(baseline=E.dpg),
        r"baseline must be a Baseline, got dpg \(function\)",
    ),
    "a number for log Z": (
        lambda: PLAIN(E.trajectory_balance)(log_z=0.0),
        r"log_z must be a LogZ, got 0.0 \(float\); give one, such as learnt_log_z",
    ),
    "clip = NaN": (lambda: E.f_dpg(divergences.forward_kl, clip=math.nan), "clip must be positive"),
    "clip = inf": (lambda: E.f_dpg(divergences.forward_kl, clip=math.inf), "left out: no bound"),
    "truncate = 0": (lambda: E.reinforce(truncate=0.0), "truncate must be positive .*got 0"),
    "truncate = True": (lambda: PLAIN(E.reinforce)(truncate=True), "truncate must be positive"),
    "decay = 1": (lambda: E.running(decay=1.0), r"decay must lie in \(0, 1\), got 1"),
    "decay = NaN": (lambda: E.running_log_z(decay=math.nan), "decay must be a number in"),
    "decay = text": (lambda: PLAIN(E.per_context_log_z)(2, decay="0.5"), "decay must be .*'0.5'"),
    "1.5 contexts": (lambda: PLAIN(E.per_context_log_z)(1.5), "num_contexts must be a whole"),
    "True contexts": (lambda: PLAIN(E.per_context_log_z)(True), "num_contexts must be a whole"),
    "log Z = NaN": (lambda: E.known_log_z(math.nan), "a known log Z must be a finite number"),
    "log Z = 1j": (lambda: PLAIN(E.known_log_z)(1j), "a known log Z must be a finite number"),
    "log Z = -inf": (lambda: E.learnt_log_z(-math.inf), "the initial log Z must be a finite"),
    "a rate of inf": (lambda: E.learnt_log_z(learning_rate=math.inf), "learning_rate must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_choice_is_refused(case):
    build, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_log_weights_that_do_not_fit_are_refused():
    estimator, good = estimators.vargrad(), weighing([1, 2], [3, 4])
    for change, message in (
        ({"proposal": np.zeros(2)}, r"log proposal \(2,\); both must be"),
        ({"context": np.arange(3)}, r"ids have shape \(3,\) and .* shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.update({}, good._replace(**change))
    with pytest.raises(TypeError, match=r"log target is complex"):
        estimators.check(estimator, good._replace(target=good.target + 1j))


def test_names_say_the_choices():
    """What tells two fits apart: a resumed one is compared by it."""
    made = estimators.f_dpg(
        divergences.forward_kl,
        log_z=estimators.per_context_log_z(3, decay=0.5),
        baseline=estimators.running(decay=0.25),
        truncate=2.0,
    )
    assert made.name == (
        "f_dpg(forward_kl, per_context_log_z(3, decay=0.5), running(decay=0.25), truncate=2)"
    )
    assert estimators.known_log_z(np.array([0.5, 1.0])).name == "known_log_z(0.5, 1)"
    many = [estimators.known_log_z(np.arange(9.0) + shift).name for shift in (0.0, 1e-9)]
    assert many[0] != many[1]
    assert many[0].startswith("known_log_z(9 numbers, ")


def test_a_state_of_another_estimator_is_refused():
    """Also one that an older version saved: its numbers would be read as others, or not found."""
    weights = LogWeights(np.log([0.5, 0.5]), np.array([0.0, 1.0]))
    running = estimators.f_dpg(divergences.reverse_kl, log_z=estimators.running_log_z())
    state = estimators.checked_update(running, running.init(), weights).state
    estimators.checked_update(running, state, weights)
    other = estimators.f_dpg(divergences.reverse_kl)
    with pytest.raises(ValueError, match=r"the state holds .*log_z.origin.*, and f_dpg"):
        estimators.checked_update(other, state, weights)
    old = {**state, "log_z": {"log_total": 0.0, "log_count": 0.0, "context": 0.0}}
    with pytest.raises(ValueError, match=r"holds .*log_z.log_total.* saved by another version"):
        estimators.checked_update(running, old, weights)
