r"""Finite sets of outcomes: listed, or known by what a distribution over sequences is made of.

A `Space` lists all N outcomes on axis 0. Every other quantity is a vector over that
axis, with contexts on the trailing axes, ``(N, *contexts)``, so that

.. math:: Z = \sum_y P(y), \qquad p = P / Z, \qquad E_p[h] = \sum_y p(y) h(y)

are sums over axis 0. The arrays may come from NumPy, JAX or torch; what goes in comes out.
Outcomes that a hard constraint rejects have log density −inf and probability 0, and never
turn a sum into NaN.
"""

from infer_align.spaces.sequences import SequenceModel
from infer_align.spaces.space import Solution, Space

__all__ = ["SequenceModel", "Solution", "Space"]
