"""Resampling schemes choose each row as often as its weight says, on average exactly."""

import numpy as np
import pytest

from infer_align.samplers import multinomial, residual, stratified, systematic

SCHEMES = [multinomial, stratified, systematic, residual]
P = np.array([0.31, 0.0, 0.07, 0.42, 0.2])


def counts(rows, n):
    """How often each row was chosen, (n, *contexts)."""
    return (rows[:, None] == np.arange(n).reshape(-1, *(1,) * (rows.ndim - 1))).sum(axis=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_unbiased_in_every_context(scheme):
    """E[count] = m p within five standard errors, each column its own p."""
    p, m, columns = np.stack([P, P[::-1], np.roll(P, 2)], axis=1), 7, 4000
    wide = np.repeat(p, columns, axis=1)
    got = counts(scheme(3.0 * wide, m, np.random.default_rng(0)), 5).reshape(5, 3, columns)
    se = got.std(axis=-1) / np.sqrt(columns) + 1e-12
    assert np.all(np.abs(got.mean(axis=-1) - m * p) <= 5 * se)


class Grid(np.random.Generator):
    """A generator whose one number steps through the unit interval."""

    def __init__(self, u):
        super().__init__(np.random.PCG64(0))
        self.u = u

    def random(self, shape):
        return np.broadcast_to(self.u, shape).copy()


def test_systematic_is_unbiased_exactly():
    """Averaged over its one uniform number the counts are m p."""
    grid = (np.arange(10_000) + 0.5) / 10_000
    wide = np.repeat(P[:, None], len(grid), axis=1)
    got = counts(systematic(wide, 3, Grid(grid)), 5)
    assert got.mean(axis=1) == pytest.approx(3 * P, abs=2e-4)


@pytest.mark.parametrize("scheme", [systematic, residual])
def test_low_variance_counts_stay_near_the_mean(scheme):
    """Systematic counts are ⌊mp⌋ or one more; residual counts never fewer."""
    wide = np.repeat(P[:, None], 500, axis=1)
    got = counts(scheme(wide, 9, np.random.default_rng(1)), 5)
    low = np.floor(9 * P)[:, None]
    assert np.all(got >= low)
    if scheme is systematic:
        assert np.all(got <= low + 1)


def test_variances_are_ordered():
    """Stratified, systematic and residual counts vary less than independent ones."""
    wide = np.repeat(np.array([0.15, 0.35, 0.3, 0.2])[:, None], 5000, axis=1)
    variance = {
        scheme.__name__: counts(scheme(wide, 8, np.random.default_rng(2)), 4).var(axis=1).sum()
        for scheme in SCHEMES
    }
    assert variance["multinomial"] == pytest.approx(8 * (1 - (wide[:, 0] ** 2).sum()), rel=0.05)
    for better in ("stratified", "systematic", "residual"):
        assert variance[better] < 0.6 * variance["multinomial"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_zeros_and_ends(scheme):
    """Zero weights are never chosen, whatever the uniform number; a column of zeros stays."""
    for u in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        p = np.array([[0.0, 0.0], [0.4, 0.0], [0.0, 0.0], [0.6, 0.0], [0.0, 0.0]])
        rows = scheme(p, 7, Grid(np.array(u)))
        assert rows.shape == (7, 2)
        assert set(rows[:, 0]) <= {1, 3}
        assert rows[:, 1].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert scheme(np.ones((3, 2, 4)), 6, np.random.default_rng(0)).shape == (6, 2, 4)
    assert scheme(np.ones(3), 2, np.random.default_rng(0)).shape == (2,)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("p", [[-0.1, 1.0], [np.nan, 1.0], [np.inf, 1.0], []])
def test_weights_that_are_none_are_refused(scheme, p):
    """Log-weights passed by mistake are named."""
    with pytest.raises(ValueError, match="not log-weights"):
        scheme(np.array(p), 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 1"):
        scheme(np.ones(2), 0, np.random.default_rng(0))
