r"""The law of a sum on an integer lattice, to full relative accuracy, by tilted Fourier windows.

A plain FFT of the characteristic function is accurate to 1e-16 of the *largest* probability, so it
knows nothing of the tails, where best-of-n lives. Tilted by θ the sum has its mean elsewhere,

.. math:: P(s) = e^{Λ(θ) - θ s} P_θ(s), \qquad
          P_θ(s) = \frac1M \sum_k ψ_θ(ω_k) e^{-iω_k s}, \quad ω_k = 2πk/M,

and there P_θ is accurate. The levels are covered by windows of a few standard deviations about
the mean of as many tilts as it takes; each window's M needs to hold only what its tilt can reach,
so the whole law costs about √m FFTs of length √m.
"""

import functools
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from infer_align._numerics import Array, namespace

REACH = 3.5
"""Half-width of a window, in standard deviations of its tilt."""
OVERLAP = 1.5
"""What it sees beyond, on either side."""
LEAK = 45.0
"""A window's period leaves out less than exp(−LEAK) of the tilted law (Chernoff's bound)."""
NOISE = 1e-7
"""A probability below this share of the largest of its window is known to about 1e-8 at best."""
IMPOSSIBLE = 1e-13
"""What is below this share counts as impossible, where attainable values are not known."""
FLOOR = 1e-17
"""No attainable probability is put below this share of the largest of its window."""


Tilt = Callable[[float], tuple[float, float, float]]


@runtime_checkable
class Sum(Protocol):
    """A random sum of integers s >= 0, by its tilts."""

    def tilt(self, theta: float) -> tuple[float, float, float]:
        """KL(P_θ‖P), mean and variance of the tilted sum; log E[exp(θ s)] = θ·mean − KL."""
        ...

    def characteristic(self, theta: float, omega: np.ndarray, centre: int) -> np.ndarray:
        """E_θ[exp(iω(s − centre))], complex, shape of omega."""
        ...


class Memoryless:
    """The sum of m independent letters.

    Parameters
    ----------
    log_p : array, shape (k,)
        Finite log-probabilities of the letters.
    x : array of int, shape (k,)
        What each adds, >= 0 and the least 0.
    m : int
        Number of letters.
    """

    def __init__(self, log_p: np.ndarray, x: np.ndarray, m: int):
        self.log_p, self.x, self.m = log_p, x.astype(float), m
        self.p, self.positions = np.exp(log_p), x
        self.prior_mean = float(self.p @ self.x)
        order = np.argsort(x)
        beside = np.flatnonzero(np.diff(x[order]) == 1)
        self.next_to = order[beside], order[beside + 1]

    def _tilted(self, theta: float) -> tuple[np.ndarray, float]:
        """Letter probabilities and their mean under the tilt."""
        logits = self.log_p + theta * self.x
        weights = np.exp(logits - logits.max())
        q = weights / weights.sum()
        return q, float(q @ self.x)

    def tilt(self, theta: float) -> tuple[float, float, float]:
        """Of the sum, as in `Sum`; the KL to relative accuracy, however small."""
        q, mean = self._tilted(theta)
        scaled = theta * (self.x - self.prior_mean)
        if np.abs(scaled).max() < 1:
            log_t = scaled - math.log1p(float(self.p @ np.expm1(scaled)))
            kl = float(self.p @ (np.exp(log_t) * log_t - np.expm1(log_t)))
        else:
            log_q = self.log_p + scaled
            kl = float(q @ scaled) - float(np.logaddexp.reduce(log_q))
        return self.m * kl, self.m * mean, self.m * float(q @ (self.x - mean) ** 2)

    def characteristic(self, theta: float, omega: np.ndarray, centre: int) -> np.ndarray:
        """Of the sum, as in `Sum`; accurate near ω = 0, where powers would lose digits."""
        q, mean = self._tilted(theta)
        if len(q) * len(omega) > 4_000_000:
            return self._by_fft(q, mean, omega, centre)
        whole, omega = omega, omega[omega <= self._cutoff(q)]
        # ψ − 1 of the centred letter, without cancellation.
        angles = np.multiply.outer(self.x - mean, omega)
        real = -2 * (q @ np.sin(angles / 2) ** 2)
        imaginary = q @ np.sin(angles)
        with np.errstate(divide="ignore"):  # a zero of ψ
            size = self.m / 2 * np.log1p(np.maximum(real * (2 + real) + imaginary**2, -1.0))
        out = np.zeros(len(whole), dtype=complex)
        seen = np.flatnonzero(size > -LEAK)  # few, if m is large
        phase = self.m * np.arctan2(imaginary[seen], 1 + real[seen])
        out[seen] = np.exp(size[seen] + 1j * (phase + omega[seen] * (self.m * mean - centre)))
        return out

    def _cutoff(self, q: np.ndarray) -> float:
        """A frequency beyond which |ψ|^m is below exp(−LEAK).

        1 − |ψ|² is 4 Σ q_i q_j sin²(ω(x_i − x_j)/2) over all pairs, so at least that of two
        neighbours on the lattice.
        """
        gain = 4 * self.m * float((q[self.next_to[0]] * q[self.next_to[1]]).max(initial=0.0))
        return 2 * math.asin(math.sqrt(2 * LEAK / gain)) if gain > 2 * LEAK else math.inf

    def _by_fft(self, q: np.ndarray, mean: float, omega: np.ndarray, centre: int) -> np.ndarray:
        """The same for many letters, from one FFT of the letter; loses m·1e-16."""
        period = 2 * (len(omega) - 1)
        shift = round(mean)
        folded = np.bincount((self.positions - shift) % period, weights=q, minlength=period)
        letter = np.conj(np.fft.rfft(folded))
        with np.errstate(divide="ignore"):
            log_letter = np.log(letter)
        exponent = self.m * log_letter + 1j * omega * (self.m * shift - centre)
        return np.where(letter == 0, 0.0, np.exp(exponent))


def lattice_law(total: Sum, size: int, attainable: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Log-probabilities of s = 0, ..., size − 1.

    Parameters
    ----------
    total : Sum
    size : int
        One more than the largest value of the sum.
    attainable : array of bool, shape (size,), or None
        Which values the sum can take. None: what is below 1e-13 of its neighbours is impossible.

    Returns
    -------
    array, shape (size,)
        −inf where not attainable.
    int
        How many attainable values are so improbable beside their neighbours that they are known
        only to 1e-16 of those.
    """
    out, best = np.full(size, -math.inf), np.full(size, -math.inf)
    start, theta = 0, 0.0
    tilt = functools.cache(total.tilt)
    while start < size:
        theta = _tilt_from(tilt, start, theta)
        _, mean, variance = tilt(theta)
        reach = math.ceil(mean + REACH * math.sqrt(variance)) + 1
        stop = min(size, max(start + 1, reach))
        # Neighbours overlap, and a level is taken from the tilt that gives it the larger share.
        overlap = math.ceil(OVERLAP * math.sqrt(variance))
        low, high = max(0, start - overlap), min(size, stop + overlap)
        log_prob, share = _window(total, tilt, theta, low, high, size)
        better = share > best[low:high]
        out[low:high] = np.where(better, log_prob, out[low:high])
        best[low:high] = np.where(better, share, best[low:high])
        start = stop
    here = best > IMPOSSIBLE if attainable is None else attainable
    return np.where(here, out, -math.inf), int(np.count_nonzero(here & (best < NOISE)))


def _tilt_from(tilt: Tilt, start: int, theta: float) -> float:
    """A tilt whose window begins at ``start``, or at most a third of an sd above."""

    def offset(t: float) -> float:
        """How many sd the window begins above the start."""
        _, mean, variance = tilt(t)
        sd = math.sqrt(variance)
        return (mean - start - REACH * sd) / max(sd, 1e-3)

    low, step = theta, 1.0
    while start == 0 and offset(low) > 0:
        low, step = low - step, 2 * step
    high, step = low, 2 * REACH / max(math.sqrt(tilt(low)[2]), 1e-3)
    while offset(high) < 0:
        low, high, step = high, high + step, 2 * step
    below, above = offset(low), offset(high)
    while above > 0.3 and high - low > 1e-12 * max(1.0, abs(high)):
        share = (0.15 - below) / (above - below)
        middle = low + min(max(share, 0.1), 0.9) * (high - low)
        if (gap := offset(middle)) < 0:
            low, below = middle, gap
        else:
            high, above = middle, gap
    return high


def _window(
    total: Sum, tilt: Tilt, theta: float, start: int, stop: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of start, ..., stop − 1 by one tilt, and shares of its largest."""
    kl, mean, _ = tilt(theta)
    low = max(0, math.floor(mean - _beyond(tilt, theta, -1)))
    high = min(size - 1, math.ceil(mean + _beyond(tilt, theta, 1)))
    low, high = min(low, start), max(high, stop - 1)
    period = _good_length(high - low + 1)
    centre = min(max(round(mean), low), high)
    omega = np.arange(period // 2 + 1) * (2 * math.pi / period)
    psi = total.characteristic(theta, omega, centre)
    pmf = np.fft.irfft(np.conj(psi), period)
    s = np.arange(start, stop)
    values = pmf[(s - centre) % period]
    top = pmf.max()
    return np.log(np.maximum(values, FLOOR * top)) - kl - theta * (s - mean), values / top


def _beyond(tilt: Tilt, theta: float, side: int) -> float:
    """How far from its mean the tilted sum can be, but for exp(−LEAK), on one side."""
    kl, mean, variance = tilt(theta)
    sd = max(math.sqrt(variance), 1e-3)
    best = math.inf
    for multiple in (9.0, 3.0, 27.0):
        eta = side * multiple / sd
        other_kl, other_mean, _ = tilt(theta + eta)
        # log E_θ[exp(η (s − mean))], the excess of Λ over its tangent at θ.
        excess = (theta + eta) * (other_mean - mean) - other_kl + kl
        best = min(best, (LEAK + excess) / abs(eta))
        if best < 12 * sd:  # as for a Gaussian: other η would hardly help
            break
    return max(best, 1.0)


def _good_length(n: int) -> int:
    """An even number >= n with no prime factor above 5."""
    best = 2 ** max(n - 1, 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = 2 ** max(math.ceil(n / three) - 1, 1).bit_length()
            best = min(best, three * two)
            three *= 3
        five *= 5
    return best


def attainable_sums(x: np.ndarray, m: int) -> np.ndarray:
    """Which of 0, ..., m·max(x) are sums of m entries of x (integers, least 0, gcd 1).

    Up to 2·max(x) summands are tried. The pattern of holes at both ends then no longer changes
    (Granville and Shakan 2020, on sumsets), and there are no others.
    """
    top = int(x.max())
    full = m * top + 1
    if len(x) == top + 1:
        return np.ones(full, dtype=bool)
    few = min(m, 2 * top)
    base = np.zeros(top + 1, dtype=bool)
    base[x] = True
    reach = _sumset_power(base, few)
    if few == m:
        return reach
    out = np.ones(full, dtype=bool)
    half = len(reach) // 2
    out[:half] = reach[:half]
    out[full - half :] = reach[len(reach) - half :]
    return out


def _sumset_power(base: np.ndarray, m: int) -> np.ndarray:
    """Sums of m elements of a set of integers, by repeated doubling."""
    result = np.ones(1, dtype=bool)
    while m:
        if m % 2:
            result = _sumset(result, base)
        m //= 2
        if m:
            base = _sumset(base, base)
    return result


def _sumset(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = len(a) + len(b) - 1
    period = _good_length(size)
    product = np.fft.rfft(a.astype(float), period) * np.fft.rfft(b.astype(float), period)
    return np.fft.irfft(product, period)[:size] > 0.5


def memoryless_law(
    log_p: np.ndarray, x: np.ndarray, m: int, attainable: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Log-probabilities of the sum of m letters, and how many of them are not resolved."""
    if m == 0 or x.max() == 0:
        return np.zeros(1), 0
    if len(places := np.unique(x)) < len(x):  # rounded to the same
        log_p = np.array([np.logaddexp.reduce(log_p[x == place]) for place in places])
        x = places
    size = m * int(x.max()) + 1
    if attainable is None:
        attainable = attainable_sums(x, m)
    out, unresolved = lattice_law(Memoryless(log_p, x, m), size, attainable)
    out[0], out[-1] = m * log_p[np.argmin(x)], m * log_p[np.argmax(x)]
    return out, unresolved


def shifted(log_prob: Array, shift: int, size: int) -> Array:
    """The law of the sum plus ``shift``, over 0, ..., size − 1."""
    xp = namespace(log_prob)
    nothing = log_prob[:1]
    before = xp.full_like(xp.broadcast_to(nothing, (shift,)), -math.inf)
    after = max(size - shift - log_prob.shape[0], 0)
    behind = xp.full_like(xp.broadcast_to(nothing, (after,)), -math.inf)
    return xp.concat([before, log_prob, behind])[:size]
