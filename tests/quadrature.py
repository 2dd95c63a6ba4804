"""Expectations of NumPyro programs by summing over all values of all sites. No infer_align inside.

Discrete sites take every value of their support, Poisson sites those up to 40, normal sites the
nodes of Gauss-Hermite quadrature at the standardised value: exact to rounding for smooth
functions of normals, and differentiable in the parameters.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.primitives import Messenger

HERMITE = 20
POISSON = 40


class _Sizes(Messenger):
    def __init__(self):
        super().__init__(None)
        self.sizes = []

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["value"] is None:
            d = msg["fn"]
            count = math.prod(d.batch_shape)
            self.sizes += [nodes(d)] * count
            msg["value"] = jnp.zeros(d.batch_shape, dtype=int if d.support.is_discrete else float)


class _Nodes(Messenger):
    def __init__(self, index):
        super().__init__(None)
        self.index, self.used, self.weight = index, 0, 1.0

    def process_message(self, msg):
        if msg["type"] != "sample" or msg["value"] is not None:
            return
        d = msg["fn"]
        count = math.prod(d.batch_shape)
        index = self.index[self.used : self.used + count].reshape(d.batch_shape)
        self.used += count
        if isinstance(d, dist.Normal):
            x, w = np.polynomial.hermite_e.hermegauss(HERMITE)
            msg["value"] = d.loc + d.scale * jnp.asarray(x)[index]
            self.weight = self.weight * jnp.prod(jnp.asarray(w / w.sum())[index])
        else:
            msg["value"] = index
            self.weight = self.weight * jnp.prod(jnp.exp(d.log_prob(index)))


def nodes(d):
    """How many values of a site are summed over."""
    if isinstance(d, dist.Normal):
        return HERMITE
    return POISSON if isinstance(d, dist.Poisson) else d.enumerate_support(expand=False).shape[0]


def expected(program):
    """E[program(*args)] as a differentiable function of its arguments."""

    def total(*args):
        sizes = _Sizes()
        with sizes:
            program(*args)
        grid = np.array(list(itertools.product(*map(range, sizes.sizes))))
        grid = grid.reshape(len(grid), len(sizes.sizes))

        def one(index):
            run = _Nodes(index)
            with run:
                value = program(*args)
            return run.weight * value

        return jnp.sum(jax.vmap(one)(jnp.asarray(grid)))

    return total
