r"""Gradient estimators side by side: bias with its interval, variance, and cost.

Of n independent gradients g_i of P components, and the exact gradient g,

.. math:: \hat b = \bar g - g, \qquad se_j² = \hat v_j / n, \qquad
          \hat V = \sum_j \hat v_j = \frac{1}{n-1} \sum_i \|g_i - \bar g\|²

with intervals for b that hold for all components at once (Bonferroni). At equal accuracy the time
that an estimator needs is proportional to variance × time, since k averaged gradients cost k times
as much and have a k-th of the variance (Hammersley and Handscomb 1964, section 2.5).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_torch_array

from infer_align._arguments import mapping
from infer_align._numerics import Array
from infer_align.diagnostics._draws import numpy
from infer_align.diagnostics._estimates import interval
from infer_align.diagnostics._summary import check_level

WIDTH = 96
UNBIASED = "unbiased"
ROUNDING = 64
"""Units in the last place, of the largest component, that are no bias."""


class Measurement(NamedTuple):
    """Gradients that one estimator gave, and what they cost.

    Parameters
    ----------
    gradients : array, shape (n, P)
        Independent draws (or martingale differences, as with baselines from earlier draws).
    exact : array, shape (P,), optional
        What their mean should be. None: unknown.
    exact_error : array, shape (P,), or float
        How far ``exact`` may be off: intervals for the bias are longer by it.
    seconds : float
        Time of one gradient. NaN: not measured.
    flops : float
        Floating-point operations of one gradient. NaN: unknown.
    claim : str
        What the estimator says of itself; anything but ``"unbiased"`` is flagged.
    reason : str
        Why it is not unbiased.
    """

    gradients: Array
    exact: Array | None = None
    exact_error: Any = 0.0
    seconds: float = math.nan
    flops: float = math.nan
    claim: str = UNBIASED
    reason: str = ""


class GradientRow(NamedTuple):
    """One estimator of a `Comparison`. Arrays have shape (P,), in NumPy float64."""

    label: str
    n: int
    """Gradients drawn."""
    mean: np.ndarray
    exact: np.ndarray | None
    bias: np.ndarray
    """mean − exact; NaN where the exact gradient is unknown."""
    low: np.ndarray
    """Of the bias; the intervals of all components hold at once."""
    high: np.ndarray
    variance: np.ndarray
    """Of one gradient, by component."""
    total_variance: float
    """Their sum, the trace of the covariance; 0 where it is no more than rounding."""
    total_variance_se: float
    seconds: float
    """Time of one gradient; NaN where it was not measured."""
    flops: float
    """Of one gradient; NaN where unknown."""
    claim: str
    reason: str

    @property
    def efficiency(self) -> float:
        """total variance × seconds: the time for a total variance of 1; smaller is better."""
        return self.total_variance * self.seconds

    @property
    def covers_zero(self) -> bool | None:
        """Whether the intervals of all components contain a bias of 0; None: not known."""
        if self.exact is None:
            return None
        if np.any((self.low > 0) | (self.high < 0)):
            return False
        return None if np.isinf(self.low).any() else True

    @property
    def furthest(self) -> int:
        """The component whose bias is furthest from 0, in half-lengths of its interval."""
        if np.isinf(self.low).any() and self.covers_zero is None:
            return int(np.argmax(np.where(np.isinf(self.low), np.abs(self.bias), -1.0)))
        half = (self.high - self.low) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(half > 0, np.abs(self.bias) / half, np.abs(self.bias))
        return int(np.argmax(np.nan_to_num(ratio)))

    @property
    def relative_sd(self) -> float:
        """√(total variance) / ‖exact gradient‖ (‖mean‖ where that is unknown): noise to signal."""
        norm = float(np.linalg.norm(self.mean if self.exact is None else self.exact))
        if self.total_variance == 0:
            return 0.0
        return math.sqrt(self.total_variance) / norm if norm > 0 else math.inf


@dataclass(frozen=True)
class Comparison:
    """Gradient estimators side by side; made by `compare_gradients`.

    ``str`` gives a table, `plot` and `plot_bias` draw; ``comparison[label]`` is a row.

    Parameters
    ----------
    rows : tuple of GradientRow
    names : tuple of str
        Of the P components.
    source : str
        Where the exact gradient comes from, or why it is unknown.
    level : float
        Coverage of the intervals, simultaneous over the components of a row.
    """

    rows: tuple[GradientRow, ...]
    names: tuple[str, ...]
    source: str
    level: float

    def __getitem__(self, label: str) -> GradientRow:
        for row in self.rows:
            if row.label == label:
                return row
        known = ", ".join(repr(row.label) for row in self.rows)
        raise KeyError(f"no row {label!r}; there are {known}")

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        from infer_align.diagnostics._gradient_table import text

        return text(self)

    def plot(self, axis: Any) -> Any:
        """Total variance against time per gradient, with lines of equal variance × time.

        Lower left is better; hollow points are estimators that are biased. One whose variance is 0
        stands at the lower edge.

        Parameters
        ----------
        axis : matplotlib Axes

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ValueError
            If no row has a time.
        """
        from infer_align.diagnostics._gradient_plot import plot

        return plot(self, axis)

    def plot_bias(self, axis: Any) -> Any:
        """The bias furthest from 0 of every estimator, with its interval.

        Parameters
        ----------
        axis : matplotlib Axes

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ValueError
            If no row has an exact gradient to compare with.
        """
        from infer_align.diagnostics._gradient_plot import plot_bias

        return plot_bias(self, axis)


def compare_gradients(
    measurements: Mapping[str, Measurement], *, names: Sequence[str] | None = None,
    source: str = "as given", level: float = 0.95,
) -> Comparison:  # fmt: skip
    r"""Bias, variance and cost of gradients that were drawn by any library.

    .. math:: \hat b_j \pm z_{1-(1-level)/2P} \sqrt{\hat v_j / n}

    lengthened on the side of the skew, as all intervals here are. `infer_align.jax.lab` and
    `infer_align.torch.lab` draw the gradients, time them, and call this.

    Parameters
    ----------
    measurements : mapping from label to Measurement
        All with the same P.
    names : sequence of str, optional
        Of the components. Default: their numbers.
    source : str
        Of the exact gradients, for the table.
    level : float
        Coverage of a row's intervals.

    Returns
    -------
    Comparison

    Requirements
    ------------
    n large enough for the central limit theorem. A component that no draw moved has no interval
    where it differs from the exact one, since what matters there may be rare; unless the whole
    gradient is constant, and not 0.

    Raises
    ------
    ValueError
        For shapes that do not fit, fewer than 2 gradients, or gradients that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import Measurement, compare_gradients
    >>> noise = np.random.default_rng(0).normal(size=(1000, 2))
    >>> exact = np.array([1.0, 2.0])
    >>> found = compare_gradients({
    ...     "right": Measurement(exact + noise, exact, seconds=2e-6),
    ...     "wrong": Measurement(exact + 0.5 + noise / 2, exact, seconds=1e-6)})
    >>> found["right"].covers_zero, found["wrong"].covers_zero
    (True, False)
    >>> round(found["right"].efficiency / found["wrong"].efficiency, 6)
    8.0
    """
    check_level(level)
    mapping("measurements", measurements, entries="measurements", optional=False)
    if not measurements:
        raise ValueError("there is nothing to compare; give at least one estimator")
    rows = tuple(_row(label, m, level) for label, m in measurements.items())
    sizes = {len(row.mean) for row in rows}
    if len(sizes) > 1:
        raise ValueError(
            f"the gradients have {sorted(sizes)} components; compare gradients in the same "
            "parameters"
        )
    size = sizes.pop()
    names = tuple(str(i) for i in range(size)) if names is None else tuple(names)
    if len(names) != size:
        raise ValueError(f"{len(names)} names were given for {size} components; give one for each")
    return Comparison(rows, names, source, level)


def _row(label: str, m: Measurement, level: float) -> GradientRow:
    g = _checked(label, m.gradients)
    n, size = g.shape
    mean = g.mean(axis=0)
    centred = g - mean
    squares = (centred**2).sum(axis=1)
    variance = (centred**2).sum(axis=0) / (n - 1)
    exact = None if m.exact is None else numpy(m.exact).reshape(-1)
    if exact is not None and (exact.shape != (size,) or not np.isfinite(exact).all()):
        raise ValueError(
            f"{label!r}: the exact gradient has shape {exact.shape} and "
            f"{int((~np.isfinite(exact)).sum())} entries that are not finite; needed are {size} "
            "finite numbers, one for each component of the gradients"
        )
    largest = max(float(np.abs(g).max()), 0.0 if exact is None else float(np.abs(exact).max()))
    rounding = ROUNDING * _epsilon(m.gradients) * largest
    still = variance <= rounding**2
    total = float(variance.sum())
    quiet = total <= size * rounding**2
    bias = np.full(size, math.nan) if exact is None else mean - exact
    low, high = bias.copy(), bias.copy()
    if exact is not None:
        third = (centred**3).sum(axis=0) / n**3
        each = 1 - (1 - level) / size
        low, high = interval(bias, np.sqrt(variance / n), third, each)
        slack = rounding + numpy(m.exact_error)
        low, high = low - slack, high + slack
        # What no draw moved: perhaps the draws that matter are rare.
        if not (still.all() and np.any(np.abs(mean) > rounding)):
            blind = still & (np.abs(bias) > slack)
            low, high = np.where(blind, -math.inf, low), np.where(blind, math.inf, high)
    return GradientRow(
        label, n, mean, exact, bias, low, high, variance, 0.0 if quiet else total,
        0.0 if quiet else float(squares.std(ddof=1) / math.sqrt(n)),
        float(m.seconds), float(m.flops), m.claim, m.reason,
    )  # fmt: skip


def _checked(label: str, gradients: Array) -> np.ndarray:
    g = numpy(gradients)
    if g.ndim != 2 or g.shape[0] < 2 or g.shape[1] < 1:
        raise ValueError(
            f"{label!r}: the gradients have shape {g.shape}; needed is (n, P), at least 2 "
            "gradients of at least 1 component: draw more, or flatten the parameters"
        )
    if count := int((~np.isfinite(g)).any(axis=1).sum()):
        raise ValueError(
            f"{label!r}: {count} of {len(g)} gradients are not finite; see that every draw has a "
            "finite log-density and a finite value, and that the estimator knows the site"
        )
    return g


def _epsilon(gradients: Array) -> float:
    """Of the precision in which the gradients were computed."""
    if is_torch_array(gradients):
        gradients = gradients[:0].detach().cpu().numpy()
    kind = np.asarray(gradients[:0]).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def wrapped(note: str) -> str:
    """A note of a table, as `table` has them."""
    return textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
