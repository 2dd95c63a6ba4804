r"""Draw from a target: every method returns a `WeightedSample`.

A sampler needs a proposal q that it can draw from and score, and the target's log density. The
backends join the two in a `Source` (``infer_align.jax.source``, ``infer_align.torch.source``); the
decisions (accept, resample, swap) are taken here, in NumPy float64, from the source's own random
generator. Outcomes are on axis 0, contexts on the trailing axes; every context is sampled on its
own, and all of them in the same calls of the model.
"""

from infer_align.samplers._acceptance_curve import (
    AcceptanceCurve,
    acceptance_curve,
    choose_log_beta,
)
from infer_align.samplers._best_of_n import best_of_n
from infer_align.samplers._importance import importance, resample, sampling_importance_resampling
from infer_align.samplers._independence import independence_metropolis
from infer_align.samplers._local import local_metropolis
from infer_align.samplers._pareto import Smoothed, pareto_smooth
from infer_align.samplers._rejection import quasi_rejection, rejection
from infer_align.samplers._resampling import multinomial, residual, stratified, systematic
from infer_align.samplers._smc import conditional_importance, conditional_smc, smc
from infer_align.samplers._source import Drawn, Source, TokenStream
from infer_align.samplers._source import check_components as check_components
from infer_align.samplers._source import check_density_shape as check_density_shape
from infer_align.samplers._source import mixture_log_weights as mixture_log_weights
from infer_align.samplers._twists import (
    NextTwist,
    PrefixTwist,
    next_twist,
    policy_twist,
    prefix_twist,
)
from infer_align.targets import WeightedSample

__all__ = [
    "AcceptanceCurve",
    "Drawn",
    "NextTwist",
    "PrefixTwist",
    "Smoothed",
    "Source",
    "TokenStream",
    "WeightedSample",
    "acceptance_curve",
    "best_of_n",
    "choose_log_beta",
    "conditional_importance",
    "conditional_smc",
    "importance",
    "independence_metropolis",
    "local_metropolis",
    "multinomial",
    "next_twist",
    "pareto_smooth",
    "policy_twist",
    "prefix_twist",
    "quasi_rejection",
    "rejection",
    "resample",
    "residual",
    "sampling_importance_resampling",
    "smc",
    "stratified",
    "systematic",
]
