r"""Exact answers on enumerable outcomes: the oracle of every test.

A :class:`Space` lists all N outcomes on axis 0. Every other quantity is a vector over that
axis, with contexts on the trailing axes, ``(N, *contexts)``, so that

.. math:: Z = \sum_y P(y), \qquad p = P / Z, \qquad E_p[h] = \sum_y p(y) h(y)

are sums over axis 0. The arrays may come from NumPy, JAX or torch; what goes in comes out.
Outcomes that a hard constraint rejects have log density −inf and probability 0, and never
turn a sum into NaN.

Larger outcome sets that factorise (memoryless models by types, Markov models by messages)
get their own spaces beside this one; they share its vocabulary: ``log_z``, ``log_target``,
``solve``.
"""

from infer_align.exact._space import Solution, Space

__all__ = ["Solution", "Space"]
