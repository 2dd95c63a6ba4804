"""`log_z_agreement`: whether two independent estimates of log Z per context agree."""

import math
from typing import TYPE_CHECKING

import numpy as np

from infer_align._numerics import ties
from infer_align.diagnostics._tree import group_of

if TYPE_CHECKING:
    import xarray


def log_z_agreement(
    first: "xarray.DataTree", second: "xarray.DataTree | np.ndarray"
) -> "xarray.Dataset":
    r"""Compare log Ẑ per context of two independent samplers, or of one with the truth.

    .. math:: z_x = \frac{\log \hat Z_x - \log \hat Z'_x}{\sqrt{se_x^2 + se'^2_x}}, \qquad
              χ² = \sum_x z_x^2

    Where both are unbiased and their standard errors right, the z are standard normal: χ² has one
    degree of freedom a context, and the PIT values Φ(z) are uniform. A small p-value of χ² means
    that one of them is off or too sure of itself: it misses part of the target, or its weights
    have too heavy a tail. A small ``p_uniform`` with an ordinary χ² means that all contexts lean
    the same way, or that the standard errors are too large.

    Parameters
    ----------
    first : xarray.DataTree
        From `assess` or `assess_sample`.
    second : xarray.DataTree, or array of shape (contexts)
        The same, of independent draws for the same contexts on the same scale of log P; or log Z
        itself.

    Returns
    -------
    xarray.Dataset
        By context: first, second, difference, se, z and pit (NaN where an estimate or its
        standard error is not finite). Attributes: contexts (compared), left_out, chi2, p_chi2,
        p_uniform (Kolmogorov-Smirnov), mean_z, and unreliable (contexts compared in which
        either estimate is not reliable). p-values are NaN where nothing could be compared.

    Raises
    ------
    ValueError
        If the contexts differ.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import diagnostics
    >>> from infer_align.estimators import LogWeights
    >>> rng = np.random.default_rng(0)
    >>> log_w = rng.normal(-0.5, 1.0, size=(2000, 30))               # log Z = 0 in 30 contexts
    >>> tree = diagnostics.assess(LogWeights(np.zeros((2000, 30)), log_w))
    >>> agreement = diagnostics.log_z_agreement(tree, np.zeros(30))
    >>> agreement.attrs["contexts"], agreement.attrs["p_chi2"] > 0.01
    (30, True)
    """
    import xarray
    from scipy import stats

    labels, value, error, reliable = _log_z(first)
    if isinstance(second, np.ndarray):
        other, other_error, sure = second.reshape(-1).astype(float), 0.0, True
        same = len(other) == len(value)
    else:
        names, other, other_error, sure = _log_z(second)
        same = np.array_equal(names, labels)
    if not same:
        raise ValueError(
            f"the first estimate has {len(value)} contexts and the second {len(other)}, or their "
            "labels differ; assess the same contexts in the same order"
        )
    with np.errstate(invalid="ignore"):
        difference = value - other
        se = np.sqrt(error**2 + np.square(other_error))
    used = np.isfinite(difference) & np.isfinite(se)
    gap = np.where(used, difference, math.nan)
    # Weights without spread: no error, and no difference beyond rounding.
    exact = used & (se == 0)
    off = np.where(np.abs(difference) <= 10 * ties(value), 0.0, np.copysign(math.inf, gap))
    z = np.where(exact, off, gap / np.where(se > 0, se, 1.0))
    compared = z[used & ~(exact & (off == 0))]
    pit = stats.norm.cdf(z)
    count = len(compared)
    chi2 = float((compared**2).sum())
    columns = {"first": value, "second": other, "difference": difference, "se": se}
    return xarray.Dataset(
        {name: ("context", column) for name, column in (columns | {"z": z, "pit": pit}).items()},
        coords={"context": labels},
        attrs={
            "contexts": int(used.sum()),
            "left_out": int((~used).sum()),
            "unreliable": int((used & ~(reliable & sure)).sum()),
            "chi2": chi2,
            "p_chi2": float(stats.chi2.sf(chi2, count)) if count else math.nan,
            "p_uniform": (
                float(stats.kstest(stats.norm.cdf(compared), "uniform").pvalue)
                if count
                else math.nan
            ),
            "mean_z": float(compared.mean()) if count else math.nan,
        },
    )


def _log_z(tree: "xarray.DataTree") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the contexts, log Ẑ, its standard error and whether it is reliable."""
    data = group_of(tree, "diagnostics/contexts")
    value, se, _, _, reliable = data["log_z"].values
    return data["context"].values, value, se, reliable > 0
