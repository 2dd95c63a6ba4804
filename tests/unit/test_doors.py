"""Every argument of every public function: what cannot be right is refused at the door, by us.

Not by an AttributeError or a ufunc from inside, and not taken in silence. Counts, levels and sizes
have their own tests (`test_claims_arguments.py`), as have JAX and torch.
"""

import inspect
import math
import traceback
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import infer_align
from infer_align import (
    Space,
    WeightedSample,
    diagnostics,
    divergences,
    estimators,
    exact,
    samplers,
    targets,
)
from infer_align.exact import (
    asymptotics,
    calibrated,
    chains,
    overoptimization,
    regularized,
    reports,
    selection,
    tilts,
)
from tests.sources import TableSource

PACKAGE = str(Path(infer_align.__file__).parent)


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the type checks of the test run, which refuse with an error of their own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class Prior:
    """A categorical law of NumPy."""

    def log_prob(self, y):
        return np.log([0.5, 0.3, 0.2])[np.asarray(y, int)]


def table():
    log_q = np.log([0.9, 0.07, 0.03])
    return TableSource(np.array([[0], [1], [2]]), log_q, log_q + np.arange(3), vocabulary=3)


LAW = exact.reward_law([0.5, 0.3, 0.2], [0, 1, 2])
LP, KL, JS = LAW.log_prob, divergences.reverse_kl, divergences.jensen_shannon
W, GOLD, HALF = np.log([0.5, 1.0, 2.0, 1.5]), np.array([0.0, 1.0, 1.5]), np.log([0.5, 0.5])
BOTH = estimators.LogWeights(np.zeros(4), W)
SAMPLE = WeightedSample(np.arange(4), W, W, evidence=W)
TREE = diagnostics.assess(BOTH, log_prior=W, features={"r": np.arange(4.0)})
CDF = targets.RewardCdf.exact(np.array([0.0, 1.0, 2.0]), np.log([0.5, 0.3, 0.2]))
STEPS, OTHER = np.log([[0.5, 0.5], [0.2, 0.8]]), np.log([[0.5, 0.5], [0.3, 0.7]])
MOMENT = targets.moment_match(Prior(), {"a": (lambda y: 1.0 * y, 0.7)})
F_DPG = estimators.f_dpg(KL)
P, RNG = np.array([0.5, 0.5]), np.random.default_rng(0)


def reward(y):
    return 1.0 * y


def of(function, **arguments):
    return function, arguments


CASES = [
    of(exact.reward_law, probs=[0.5, 0.5], rewards=[0, 1], length=2),
    of(exact.reward_law_of_counts, probs=[0.5, 0.5], reward=lambda c: c[:, 1], length=3, digits=12),
    of(exact.log_rewards, probs=[0.5, 0.5]),
    of(exact.regularized_rewards, rewards=[0, 1], probs=[0.5, 0.5], weight=1),
    of(Space, outcomes=np.arange(3)),
    of(exact.Chain, initial=[0.5, 0.5], transition=np.exp(STEPS), rewards=[0, 1], length=3),
    of(chains.renyi_cross_entropy_rate, log_p=STEPS, log_q=OTHER, order=2.0),
    of(tilts.beta_for_kl, family=LAW, kl=0.1),
    of(tilts.beta_for_reward, family=LAW, reward=1.0),
    of(tilts.frontier, family=LAW, kl=0.1),
    of(tilts.closeness, law=LAW, log_policy=LP, kl=0.1),
    of(tilts.small_kl_expansion, law=LAW, kl=0.1),
    of(selection.autoregressive, law=LAW, log_policy=LP),
    of(selection.best_of_n, law=LAW, n=2),
    of(selection.best_of_poisson, law=LAW, mu=2.0),
    of(selection.inference_aware, law=LAW, n=2, beta=1.0),
    of(selection.kl_bound, n=2),
    of(selection.kl_estimate, n=2, log_prob=-1.0),
    of(selection.log_kl_to_best_of_n, law=LAW, log_policy=LP, n=2),
    of(selection.sampling_costs, law=LAW, beta=1.0),
    of(selection.soft_best_of_n, law=LAW, n=2, temperature=1.0),
    of(selection.threshold, law=LAW, reward=1.0),
    of(selection.win_rate_of_best_of_n, law=LAW, log_policy=LP, n=2),
    of(selection.win_rate_optimum, law=LAW, kl=0.1),
    of(regularized.optimum, law=LAW, divergence=KL, beta=1.0),
    of(regularized.optimum_for_budget, law=LAW, divergence=KL, budget=0.1),
    of(asymptotics.bahadur_rao, law=LAW, reward=1.0, length=10),
    of(asymptotics.best_of_n_limit, law=LAW, kl=0.1, length=10),
    of(asymptotics.log_kl_exponent, family=LAW, kl=0.1),
    of(asymptotics.rate, family=LAW, reward=1.0, beta=1.0),
    of(asymptotics.rate_of_best_of_n, family=LAW, reward=1.0, kl=0.1),
    of(asymptotics.renyi_cross_entropy, log_p=LP, log_q=LP, order=2.0),
    of(asymptotics.scaled_cumulant, family=LAW, t=1.0, beta=1.0),
    of(asymptotics.scaled_cumulant_of_best_of_n, family=LAW, t=1.0, kl=0.1),
    of(calibrated.best_of_n, n=2.0),
    of(calibrated.best_of_poisson, mu=2.0),
    of(calibrated.threshold, quantile=0.5),
    of(calibrated.tilt, beta=1.0),
    of(overoptimization.best_of_n_form, d=1.0, alpha=1.0, beta=1.0),
    of(overoptimization.rl_form, d=1.0, alpha=1.0, beta=1.0),
    of(overoptimization.covariance, law=LAW, gold=GOLD, beta=1.0),
    of(overoptimization.expected_gold, law=LAW, gold=GOLD, log_policy=LP),
    of(overoptimization.peak, law=LAW, gold=GOLD),
    of(overoptimization.small_kl_form, law=LAW, gold=GOLD),
    of(overoptimization.fit_form, kl=GOLD, gold=GOLD, form=overoptimization.rl_form, start=0.1),
    of(reports.memoryless, probs=[0.5, 0.5], rewards=[0, 1], lengths=[2], kls=[0.1]),
    of(targets.best_of_n, base=Prior(), reward=reward, n=2, cdf=CDF),
    of(targets.condition, base=Prior(), accepts=lambda y: y > 0),
    of(targets.demonstrations, outcomes=np.arange(3), weights=np.ones(3)),
    of(targets.geometric_mixture, references=[Prior(), Prior()], weights=[0.5, 0.5]),
    of(targets.indicator, accepts=np.array([True, False])),
    of(targets.kl_budget, base=Prior(), reward=lambda y: 1.0 * (y > 1), kl=0.1, sample=SAMPLE),
    of(targets.moment_match, base=Prior(), moments={"a": (reward, 0.7)}),
    of(targets.preference_tilt, base=Prior(), preference=np.greater, opponents=P, beta=1.0),
    of(targets.quantile, reward=reward, cdf=CDF),
    of(targets.quantile_tilt, base=Prior(), reward=reward, cdf=CDF, beta=1.0),
    of(targets.soft_best_of_n, base=Prior(), reward=reward, n=2, temperature=1.0, cdf=CDF),
    of(targets.solve_moments, target=MOMENT, sample=SAMPLE, tolerance=1e-10),
    of(targets.teacher, prior=Prior()),
    of(targets.temper, base=Prior(), power=0.5),
    of(targets.threshold, base=Prior(), reward=reward, at_least=1.0),
    of(targets.tilt, base=Prior(), reward=reward, beta=1.0, max_reward=2.0),
    of(targets.top_fraction, base=Prior(), reward=reward, fraction=0.5, cdf=CDF),
    of(targets.unconstrained, target=MOMENT),
    of(samplers.acceptance_curve, log_weights=W, log_betas=GOLD, log_proposal=W),
    of(samplers.choose_log_beta, log_weights=W, acceptance_rate=0.5, log_proposal=W),
    of(samplers.best_of_n, source=table(), reward=lambda y: y[..., 0], n=2, m=3),
    of(samplers.importance, source=table(), n=5),
    of(samplers.conditional_importance, source=table(), outcomes=np.array([[2]]), n=3),
    of(samplers.conditional_smc, source=table(), outcomes=np.array([[2]]), n=3),
    of(samplers.independence_metropolis, source=table(), n=3, steps=4),
    of(samplers.local_metropolis, source=table(), n=3, steps=4, vocabulary_size=3),
    *(
        of(scheme, probabilities=P, m=3, rng=RNG)
        for scheme in (
            samplers.multinomial,
            samplers.stratified,
            samplers.systematic,
            samplers.residual,
        )
    ),
    of(samplers.next_twist, next_log_psi=lambda prefix: prefix),
    of(samplers.prefix_twist, log_psi=lambda prefix: prefix),
    of(samplers.pareto_smooth, log_weights=W),
    of(samplers.rejection, source=table(), n=2, log_bound=3.0),
    of(samplers.quasi_rejection, source=table(), n=2, log_beta=3.0),
    of(samplers.smc, source=table(), n=5, twist=samplers.prefix_twist(lambda y: 0.0 * y[..., 0])),
    of(diagnostics.assess, weights=BOTH, log_prior=W, features={"a": W}, divergences=(KL,)),
    of(diagnostics.assess_sample, sample=SAMPLE, log_policy=W, log_prior=W, features={"a": W}),
    of(diagnostics.batch_metrics, weights=BOTH, log_prior=W, log_potential=W),
    of(diagnostics.by_position, values=np.ones((2, 3)), lengths=np.array([1, 3])),
    of(diagnostics.compare, before=BOTH, after=BOTH, divergences=(KL,), log_bounds=(None, None)),
    of(diagnostics.drift, log_policy=W, log_prior=W, lengths=np.ones(4)),
    of(diagnostics.estimates, tree=TREE),
    of(diagnostics.expected_coverage, log_target=HALF, log_policy=HALF, n=3),
    of(diagnostics.forward_kl_bounds, sample=SAMPLE, log_policy=W, lower=W, upper=W),
    of(diagnostics.frontier_points, trees={"a": TREE}, scale=1.0),
    of(diagnostics.kish_ess, log_weights=W),
    of(diagnostics.log_z_agreement, first=TREE, second=TREE),
    of(diagnostics.log_z_bounds, lower=W, upper=W),
    of(diagnostics.mode_coverage, log_target=HALF, drawn=np.array([0, 1])),
    of(diagnostics.pareto_khat, log_weights=W),
    of(diagnostics.replicate, estimate=lambda run: SAMPLE, replications=2),
    of(diagnostics.reverse_kl_bounds, log_policy=W, log_target=W, lower=W, upper=W),
    of(diagnostics.table, tree=TREE),
    of(estimators.check, estimator=F_DPG, weights=BOTH),
    of(estimators.checked_update, estimator=F_DPG, state=F_DPG.init(), weights=BOTH),
    of(estimators.f_dpg, divergence=KL, truncate=2.0, clip=2.0),
    of(estimators.learnt_log_z, learning_rate=0.1),
    of(estimators.per_context_log_z, num_contexts=2, decay=0.5),
    of(divergences.alpha, a=0.5),
    of(divergences.generalized_jensen_shannon, w=0.5),
    of(JS, log_policy=LP, log_target=LP),
]
WRONG = {"text": "x", "complex": 1j, "ragged": [[1.0], [1.0, 2.0]], "object": object()}


def ours(error):
    """Whether a statement of this package raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and last.line.lstrip().startswith("raise")


def cases():
    for function, arguments in CASES:
        name = getattr(function, "__qualname__", repr(function))
        module = inspect.getmodule(function)
        stem = "" if module is None else module.__name__.removeprefix("infer_align.") + "."
        for argument in arguments:
            yield pytest.param(function, arguments, argument, id=f"{stem}{name}({argument})")


@pytest.mark.parametrize(("function", "arguments", "argument"), list(cases()))
def test_what_cannot_be_right_is_refused_by_us(function, arguments, argument):
    """928 of them ended in an error from inside."""
    for kind, wrong in WRONG.items():
        with pytest.raises((TypeError, ValueError)) as refused:
            function(**(arguments | {argument: wrong}))
        assert ours(refused.value), f"{kind}: {refused.value!r}"
        assert len(str(refused.value)) > 20


NAN = np.array([math.nan, *LP[1:]])


@pytest.mark.parametrize("wrong", [NAN, np.where(np.isnan(NAN), math.inf, NAN), LP + 0j, LP[:2]])
def test_laws_that_are_none(wrong):
    """The divergence of NaN was 1, that of a wrong law KL 0, a cross entropy of NaN infinite."""
    for call in (
        lambda: JS(wrong, LP),
        lambda: KL(LP, wrong),
        lambda: LAW.expected_reward(wrong),
        lambda: LAW.kl_to_prior(wrong),
        lambda: LAW.divergence(KL, LP, wrong),
        lambda: tilts.closeness(LAW, wrong, 0.1),
        lambda: selection.log_kl_to_best_of_n(LAW, wrong, 2),
        lambda: selection.win_rate_of_best_of_n(LAW, wrong, 2),
        lambda: selection.autoregressive(LAW, wrong),
        lambda: asymptotics.renyi_cross_entropy(wrong, LP, 2.0),
        lambda: asymptotics.renyi_cross_entropy(LP, wrong, 2.0),
    ):
        with pytest.raises((TypeError, ValueError), match=r"NaN or \+inf|complex|shape"):
            call()


def test_numbers_that_gave_nan():
    for call, said in (
        (lambda: calibrated.best_of_n(math.inf), "finite number >= 1"),
        (lambda: calibrated.best_of_poisson(math.inf), "finite number >= 0"),
        (lambda: asymptotics.renyi_cross_entropy(LP, LP, math.nan), "order must be a number"),
        (lambda: overoptimization.peak(LAW, np.array([math.nan, 0.0, 1.0])), "NaN"),
        (lambda: diagnostics.assess(BOTH, log_bound=math.inf), "log_bound bounds"),
        (lambda: targets.indicator(np.array([math.nan, 1.0])), "accepts is NaN"),
        (lambda: samplers.acceptance_curve(W, [0.0], log_proposal=W * math.nan), "log_proposal"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            call()
