r"""Gradient estimators: functions from log-weights to coefficients.

Every loss that reaches the parameters only through the log-probabilities of drawn outcomes has
the gradient

.. math:: \hat g = \sum_{i,x} c_{ix}\, ∇_θ \log π_θ(y_{ix} | x)

with numbers c that carry no gradient. So an estimator here returns the *coefficients* c of the
loss gradient (descent), for NumPy, JAX and torch alike; a backend differentiates the one line
``(c * log_prob).sum()``. 1/n and 1/(number of contexts) are inside c: the loss is the mean over
contexts. The value of that surrogate means nothing; report the objective instead.

Shape law: outcomes on axis 0, contexts on the trailing axes, ``(n, *contexts)``. The log-Z rules
and the baselines reduce over axis 0.

What each estimator's expectation is, on- and off-policy, it says itself (`Claim`); the tests
enumerate every batch to check it.
"""

from infer_align.divergences import forward_kl, jensen_shannon, reverse_kl, total_variation
from infer_align.estimators._baselines import Baseline, dpg, leave_one_out, mean, none, running
from infer_align.estimators._core import Claim, Estimator, State, Update, check, checked_update
from infer_align.estimators._likelihood import maximum_likelihood
from infer_align.estimators._log_z import (
    LogZ,
    batch_log_z,
    known_log_z,
    learnt_log_z,
    per_context_log_z,
    running_log_z,
)
from infer_align.estimators._regression import trajectory_balance, vargrad
from infer_align.estimators._score_function import f_dpg, reinforce
from infer_align.estimators._weights import LogWeights

__all__ = [
    "ALL",
    "Baseline",
    "Claim",
    "Estimator",
    "LogWeights",
    "LogZ",
    "State",
    "Update",
    "batch_log_z",
    "check",
    "checked_update",
    "dpg",
    "f_dpg",
    "known_log_z",
    "learnt_log_z",
    "leave_one_out",
    "maximum_likelihood",
    "mean",
    "none",
    "per_context_log_z",
    "reinforce",
    "running",
    "running_log_z",
    "trajectory_balance",
    "vargrad",
]

ALL: tuple[Estimator, ...] = (
    f_dpg(jensen_shannon),
    f_dpg(jensen_shannon, log_z=batch_log_z(leave_one_out=True)),
    f_dpg(jensen_shannon, log_z=running_log_z(), baseline=running()),
    f_dpg(forward_kl, log_z=known_log_z(0.0), baseline=dpg()),
    f_dpg(forward_kl, log_z=per_context_log_z(4), baseline=none()),
    f_dpg(total_variation, baseline=mean()),
    f_dpg(forward_kl, truncate=2.0, clip=2.0),
    f_dpg(reverse_kl),
    reinforce(),
    reinforce(baseline=running()),
    vargrad(),
    trajectory_balance(),
    trajectory_balance(log_z=known_log_z(0.0)),
    maximum_likelihood(),
)
"""One instance of each estimator and of each of its rules: what the contract suite runs over."""
