"""Arguments of diagnostics and samplers that cannot be right are sentences, not numbers."""

import math

import jaxtyping
import numpy as np
import pytest

from infer_align import WeightedSample, diagnostics, samplers
from infer_align.estimators import LogWeights
from tests.sources import TableSource


@pytest.fixture(autouse=True)
def _as_users_run_it():
    """Without the type checks of the test run, which refuse with an error of their own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


W = np.log(np.array([0.5, 1.0, 2.0, 1.5]))
ZERO = np.zeros(4)
BOTH = LogWeights(ZERO, W)
SAMPLE = WeightedSample(np.arange(4), W, W, evidence=W)


def table(contexts=(), **settings):
    log_q = np.log([0.9, 0.07, 0.03])
    shape = (3, *(1,) * len(contexts))
    q, p = (
        np.broadcast_to(x.reshape(shape), (3, *contexts)) for x in (log_q, log_q + np.arange(3))
    )
    return TableSource(np.array([[0], [1], [2]]), q, p, vocabulary=3, **settings)


LEVELS = {
    "assess": lambda level: diagnostics.assess(BOTH, level=level),
    "assess_sample": lambda level: diagnostics.assess_sample(SAMPLE, level=level),
    "compare": lambda level: diagnostics.compare(BOTH, BOTH, level=level),
    "drift": lambda level: diagnostics.drift(W, W, np.ones(4), level=level),
    "log_z_bounds": lambda level: diagnostics.log_z_bounds(W, level=level),
    "reverse_kl_bounds": lambda level: diagnostics.reverse_kl_bounds(ZERO, W, W, level=level),
    "forward_kl_bounds": lambda level: diagnostics.forward_kl_bounds(SAMPLE, ZERO, W, level=level),
    "compare_gradients": lambda level: diagnostics.compare_gradients({}, level=level),
}


@pytest.mark.parametrize("level", [1.0, -0.5, 1.5, math.nan, "0.9", True])
@pytest.mark.parametrize("name", LEVELS)
def test_levels(name, level):
    """-0.5 of a KL's bounds was half of it, 0.25, and taken; the drift took any."""
    with pytest.raises((ValueError, TypeError), match="coverage of the intervals"):
        LEVELS[name](level)


COUNTS = {
    "replicate": lambda n: diagnostics.replicate(lambda run: SAMPLE, n),
    "expected_coverage": lambda n: diagnostics.expected_coverage(
        np.log([0.5, 0.5]), np.log([0.9, 0.1]), n
    ),
    "distinct_n": lambda n: diagnostics.distinct_n([[1, 2]], n),
    "self_bleu": lambda n: diagnostics.self_bleu([[1, 2], [2]], max_sequences=n),
    "importance": lambda n: samplers.importance(table(), n),
    "resample": lambda n: samplers.resample(SAMPLE, n, np.random.default_rng(0)),
    "sir n": lambda n: samplers.sampling_importance_resampling(table(), n, 10),
    "sir m": lambda n: samplers.sampling_importance_resampling(table(), 10, n),
    "rejection": lambda n: samplers.rejection(table(), n, 3.0),
    "quasi_rejection": lambda n: samplers.quasi_rejection(table(), n, 1.0),
    "max_calls": lambda n: samplers.rejection(table(), 1, 3.0, max_calls=n),
    "independence n": lambda n: samplers.independence_metropolis(table(), n, 2),
    "independence steps": lambda n: samplers.independence_metropolis(table(), 2, n),
    "independence keep": lambda n: samplers.independence_metropolis(table(), 2, 2, keep=n),
    "independence thin": lambda n: samplers.independence_metropolis(table(), 2, 2, thin=n),
    "local n": lambda n: samplers.local_metropolis(table(), n, 2),
    "local steps": lambda n: samplers.local_metropolis(table(), 2, n),
    "smc": lambda n: samplers.smc(table(), n),
    "best of n": lambda n: samplers.best_of_n(table(), lambda y: y, n, 2),
    "best of n, draws": lambda n: samplers.best_of_n(table(), lambda y: y, 2, n),
    "conditional_smc": lambda n: samplers.conditional_smc(table(), np.array([[2]]), n),
    "conditional_importance": lambda n: samplers.conditional_importance(
        table(), np.array([[2]]), n
    ),
    **{
        scheme.__name__: lambda n, scheme=scheme: scheme(
            np.array([0.5, 0.5]), n, np.random.default_rng(0)
        )
        for scheme in (
            samplers.multinomial,
            samplers.stratified,
            samplers.systematic,
            samplers.residual,
        )
    },
}


@pytest.mark.parametrize("n", [0, 1.5, math.nan, "3", True])
@pytest.mark.parametrize("name", COUNTS)
def test_counts(name, n):
    with pytest.raises((ValueError, TypeError), match="at least"):
        COUNTS[name](n)


HUGE = 99999999999999999999
SIZED = {
    "importance": lambda: samplers.importance(table(), HUGE),
    "contexts": lambda: samplers.importance(table((1000,)), 10**6),
    "resample": lambda: samplers.resample(SAMPLE, HUGE, np.random.default_rng(0)),
    "sir": lambda: samplers.sampling_importance_resampling(table(), 10, HUGE),
    "rejection": lambda: samplers.rejection(table(), HUGE, 3.0),
    "quasi_rejection": lambda: samplers.quasi_rejection(table(), HUGE, 1.0),
    "independence": lambda: samplers.independence_metropolis(table(), HUGE, 2),
    "independence steps": lambda: samplers.independence_metropolis(table(), 2, HUGE),
    "proposals": lambda: samplers.independence_metropolis(table(), 10**6, 10**6),
    "keep": lambda: samplers.local_metropolis(table(), 10**5, 10**7, keep=10**6),
    "local steps": lambda: samplers.local_metropolis(table(), 2, HUGE),
    "smc": lambda: samplers.smc(table(), HUGE),
    "best of n": lambda: samplers.best_of_n(table(), lambda y: y, HUGE, 2),
    "best of n, draws": lambda: samplers.best_of_n(table(), lambda y: y, 2, HUGE),
}


@pytest.mark.parametrize("name", SIZED)
def test_sizes_beyond_memory_are_refused_with_their_size(name):
    with pytest.raises(ValueError, match=r"GiB|more than memory holds|would not end"):
        SIZED[name]()


@pytest.mark.parametrize("log_bound", [1e308, 1e6, 120.0])
def test_a_bound_far_above_all_weights_is_refused(log_bound):
    """It ran to the last of its calls, for minutes."""
    with pytest.raises(ValueError, match=r"log_bound .* nats above the largest log P/q"):
        samplers.rejection(table(), 10, log_bound, max_calls=10**9)
    assert len(samplers.rejection(table(), 3, 8.0).evidence) > 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (3, r"mapping from names .*got 3 \(int\)"),
        ("x", "mapping from names"),
        ([W], "mapping from names"),
        ({1: W}, "one name is 1"),
        ({"a": 3.0}, r"'a' must be an array .*got 3.0 \(float\)"),
        ({"a": None}, "'a' must be an array"),
        ({"a": [1.0, 2.0, 3.0, 4.0]}, r"'a' must be an array .*\(list\)"),
        ({"a": W[:2]}, r"shape \(2,\)"),
    ],
)
def test_features(wrong, said):
    """3 was `int has no attribute items`."""
    for call in (
        lambda: diagnostics.assess(BOTH, features=wrong),
        lambda: diagnostics.assess_sample(SAMPLE, features=wrong),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            call()


@pytest.mark.parametrize("wrong", [None, 3, "x", W, (W, W)], ids=repr)
def test_what_is_no_weights_and_no_sample(wrong):
    for call in (
        lambda: diagnostics.assess(wrong),
        lambda: diagnostics.compare(wrong, BOTH),
        lambda: diagnostics.compare(BOTH, wrong),
    ):
        with pytest.raises(TypeError, match="must be a LogWeights"):
            call()
    with pytest.raises(TypeError, match="must be a WeightedSample"):
        diagnostics.assess_sample(wrong)


def test_what_else_cannot_be_right():
    source = table()
    for refused, said in (
        (lambda: samplers.smc(source, 5, ess_threshold=math.nan), "ess_threshold"),
        (lambda: samplers.smc(source, 5, ess_threshold="0.5"), "ess_threshold"),
        (lambda: samplers.local_metropolis(source, 5, 2, substitution=math.nan), "substitution"),
        (lambda: samplers.choose_log_beta(W, acceptance_rate="0.5"), "acceptance_rate"),
        (lambda: samplers.choose_log_beta(W, total_variation_bound=math.nan), "variation_bound"),
        (lambda: samplers.pareto_smooth(np.array([0.0, math.nan])), "1 NaN"),
        (lambda: diagnostics.pareto_khat(np.array([0.0, math.nan])), "1 NaN"),
        (lambda: diagnostics.pareto_khat(np.zeros((50, 2))), "one by one"),
        (lambda: diagnostics.kish_ess(np.array([0.0, math.inf])), r"1 \+inf"),
        (lambda: diagnostics.drift(W, W, np.array([1, 2, 1.5, 1])), "whole numbers"),
        (lambda: diagnostics.drift(W, W, np.zeros(4)), "no tokens"),
        (lambda: diagnostics.by_position(np.ones((2, 3)), np.array([1, -1])), "not negative"),
        (lambda: diagnostics.by_position(np.ones((2, 3)), np.array([1, 4])), "4 tokens"),
        (lambda: diagnostics.mode_coverage(np.log([0.5, 0.5]), np.array([0.5])), "positions"),
        (lambda: diagnostics.frontier_points({}, scale=math.nan), "scale"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            refused()
