"""Runs of an objective with one element of one local site set to another value.

All alternatives of all elements of all sites are lanes of a single ``vmap``, so that the program is
traced once more, however many there are. A lane is a number; which site's which element it sets is
arithmetic on it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infer_align.jax.programs._frame import Override
from infer_align.jax.programs.sites import Alternatives

Array = Any
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""By uid: the axes in front of the elements, and the elements' own."""


class Block(NamedTuple):
    """The lanes of one site: element j with alternative a is lane start + a·elements + j."""

    start: int
    count: int
    lead: tuple[int, ...]
    shape: tuple[int, ...]
    kind: tuple[tuple[int, ...], str]
    """Shape and dtype of a value."""


class Lanes(NamedTuple):
    """All of them."""

    blocks: dict[str, Block]
    values: dict[Any, Array]
    """By kind, shape (lanes, *event); zeros where a lane is of another kind."""
    weights: Array
    """Shape (lanes,): zero, with a gradient."""
    own: Array
    """The same of what was drawn, summed."""

    def overrides(self, lane: Array, values: Mapping[Any, Array]) -> dict[str, Override]:
        """What one lane sets; ``values`` are its own."""
        out = {}
        for uid, block in self.blocks.items():
            size = math.prod((*block.lead, *block.shape))
            here = lane - block.start
            inside = (here >= 0) & (here < block.count)
            element = jnp.arange(size).reshape((*block.lead, *block.shape))
            where = inside & (here % size == element) if size > 1 else inside
            where = jnp.reshape(where, (*block.lead, *block.shape))
            value = values[block.kind]
            if block.lead:  # sliced with the repetitions
                once = (1,) * (len(block.shape))
                value = jnp.broadcast_to(value, (*block.lead, *once, *value.shape))
            out[uid] = Override(where, value)
        return out


def lanes_of(alternatives: Mapping[str, Alternatives], shapes: Shapes) -> Lanes:
    """Number the alternatives that a run reported.

    Parameters
    ----------
    alternatives : mapping
        By uid; arrays with the axes of repetitions in front.
    shapes : dict
    """
    blocks, flat, weights, own, start = {}, {}, [], jnp.zeros(()), 0
    for uid, (values, weight, mine) in alternatives.items():
        lead, shape = shapes[uid]
        # (lead, A, elements) to (A, lead, elements)
        values, weight = (jnp.moveaxis(x, len(lead), 0) for x in (values, weight))
        event = tuple(values.shape[1 + len(lead) + len(shape) :])
        kind = (event, str(values.dtype))
        blocks[uid] = Block(start, weight.size, lead, shape, kind)
        flat[uid] = jax.lax.stop_gradient(values.reshape((-1, *event)))
        weights.append(weight.reshape(-1))
        start += weight.size
        if mine is not None:
            own = own + jnp.sum(mine)
    by_kind = {
        kind: jnp.concatenate(
            [
                flat[uid] if block.kind == kind else jnp.zeros((block.count, *kind[0]), kind[1])
                for uid, block in blocks.items()
            ]
        )
        for kind in {block.kind for block in blocks.values()}
    }
    return Lanes(blocks, by_kind, jnp.concatenate(weights), own)
