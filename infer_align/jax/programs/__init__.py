"""Objectives as programs: value and gradient, unbiased, with an estimator for every sample site."""

from infer_align.jax.programs import objectives
from infer_align.jax.programs._expectation import Expectation, expectation
from infer_align.jax.programs._fit import FitState, Step, fit, parameters
from infer_align.jax.programs._generative import density, detach, marginal, normalize, simulate
from infer_align.jax.programs._loops import particles, vmap
from infer_align.jax.programs.sites import (
    SiteEstimator,
    enumerate_,
    gumbel_softmax,
    local_expectation,
    measure_valued,
    reparam,
    score,
    score_baseline,
    score_loo,
    score_running,
    straight_through,
)

__all__ = [
    "Expectation",
    "FitState",
    "SiteEstimator",
    "Step",
    "density",
    "detach",
    "enumerate_",
    "expectation",
    "fit",
    "gumbel_softmax",
    "local_expectation",
    "marginal",
    "measure_valued",
    "normalize",
    "objectives",
    "parameters",
    "particles",
    "reparam",
    "score",
    "score_baseline",
    "score_loo",
    "score_running",
    "simulate",
    "straight_through",
    "vmap",
]
