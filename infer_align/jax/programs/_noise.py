"""Random numbers of a run, drawn in as few calls as there are kinds of them.

What every scope of a program needs is counted when its sites are found, so that the numbers of all
sites, particles and steps come from one call: a generator per site costs more than most programs.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax

Array = Any


@dataclass
class Need:
    """How many numbers of each kind one run of a scope uses."""

    keys: int = 0
    normal: int = 0
    uniform: int = 0
    vectors: bool = False
    """Whether some site takes several at once: its repetitions then had better be in front."""

    def supply(self, key: Array, repeats: int | None = None, *, first: bool = False) -> "Supply":
        """Draw them, for so many repetitions: on axis 0 of each array if first, else on axis 1."""
        kinds = [kind for kind in ("keys", "normal", "uniform") if getattr(self, kind)]
        parts = [key] if len(kinds) < 2 else jax.random.split(key, len(kinds))
        drawn: dict[str, Array] = dict.fromkeys(("keys", "normal", "uniform"))
        for kind, part in zip(kinds, parts, strict=False):
            count = getattr(self, kind)
            shape = (count,) if repeats is None else (count, repeats)
            shape = shape[::-1] if first else shape
            if kind == "normal":
                drawn[kind] = jax.random.normal(part, shape)
            elif kind == "uniform":
                drawn[kind] = jax.random.uniform(part, shape)
            else:
                drawn[kind] = part[None] if shape == (1,) else jax.random.split(part, shape)
        return Supply(**drawn)


@jax.tree_util.register_dataclass
@dataclass
class Supply:
    """The numbers of one run of a scope, taken in the order of the program."""

    keys: Array
    normal: Array
    uniform: Array

    def __post_init__(self) -> None:
        self.used = Need()

    def key(self) -> Array:
        """The next key."""
        self.used.keys += 1
        return self.keys[self.used.keys - 1]

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """The next standard normals or uniforms."""
        start, size = getattr(self.used, kind), math.prod(shape)
        setattr(self.used, kind, start + size)
        if size == len(getattr(self, kind)):
            return getattr(self, kind).reshape(shape)
        return getattr(self, kind)[start : start + size].reshape(shape)


class Recorder:
    """Stands in for a supply while the sites are found, and counts."""

    def __init__(self, key: Array) -> None:
        self.used, self._key, self._calls = Need(), key, 0

    def key(self) -> Array:
        """Some key."""
        self.used.keys += 1
        self._calls += 1
        return jax.random.fold_in(self._key, self._calls)

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Some noise."""
        setattr(self.used, kind, getattr(self.used, kind) + math.prod(shape))
        self.used.vectors |= math.prod(shape) > 1
        self._calls += 1
        draw = jax.random.normal if kind == "normal" else jax.random.uniform
        return draw(jax.random.fold_in(self._key, self._calls), shape)
