"""A laboratory for gradients: estimators side by side, against the exact gradient.

`compare` is for estimators of sample sites (`infer_align.jax.programs`), `compare_policy_gradients`
for those of the core, which turn log-weights into coefficients. Both give an
`infer_align.diagnostics.Comparison`: bias with intervals, variance, FLOPs, time, variance × time.
"""

from infer_align.jax.lab._compare import compare
from infer_align.jax.lab._policies import compare_policy_gradients

__all__ = ["compare", "compare_policy_gradients"]
