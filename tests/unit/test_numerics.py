"""Shared numerics on three libraries: -inf is an ordinary value."""

import math

import numpy as np
import pytest

from infer_align import _numerics as numerics
from tests.libraries import jnp, torch

LIBRARIES = pytest.mark.parametrize("xp", [np, jnp, torch], ids=["numpy", "jax", "torch"])


@LIBRARIES
def test_logsumexp(xp):
    """Right on large, small and empty columns."""
    x = np.array([[1000.0, -math.inf, -1000.0], [1001.0, -math.inf, -math.inf]])
    want = [1001 + math.log1p(math.exp(-1)), -math.inf, -1000.0]
    np.testing.assert_allclose(np.asarray(numerics.logsumexp(xp.asarray(x))), want)
    kept = numerics.logsumexp(xp.asarray(x), axis=1, keepdims=True)
    assert tuple(kept.shape) == (2, 1)
    mean = np.asarray(numerics.logmeanexp(xp.asarray(x)))
    np.testing.assert_allclose(mean, np.array(want) - math.log(2))


@LIBRARIES
def test_log_ratio_of_two_zeros_is_zero(xp):
    """0/0 counts as 1: such an outcome has no weight anyway, and no NaN."""
    a = xp.asarray(np.array([-math.inf, -math.inf, 0.5]))
    b = xp.asarray(np.array([-math.inf, 1.0, -math.inf]))
    np.testing.assert_array_equal(np.asarray(numerics.log_ratio(a, b)), [0.0, -math.inf, math.inf])


@LIBRARIES
def test_softplus(xp):
    """No overflow on either side."""
    x = xp.asarray(np.array([-800.0, 0.0, 800.0]))
    np.testing.assert_allclose(np.asarray(numerics.softplus(x)), [0.0, math.log(2), 800.0])


def test_numbers_alone_are_numpy():
    """A NumPy scalar is an array of NumPy, not an error."""
    assert float(numerics.softplus(np.float64(0.0))) == pytest.approx(math.log(2))
