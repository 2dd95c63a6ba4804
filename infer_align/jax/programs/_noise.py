"""Random numbers of a run, drawn in as few calls as pay.

What every scope of a program needs is listed when its sites are found. A single run takes all
normals from one call and all uniforms from another: a call for each site costs more than most
programs. Repeated runs take one call for each site and all repetitions: of one array for all sites
XLA would make every site's part anew.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax

Array = Any
_DRAW = {"normal": jax.random.normal, "uniform": jax.random.uniform}


@dataclass
class Need:
    """What one run of a scope asks for, in the order of the program."""

    keys: int = 0
    noise: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """Kind and shape."""

    def supply(self, key: Array, repeats: int | None = None) -> "Supply":
        """Draw it all, for so many repetitions, on axis 0 of each array."""
        parts = jax.random.split(key) if self.keys and self.noise else [key]
        noise = self._pooled(parts[0]) if repeats is None else self._separate(parts[0], repeats)
        if not self.keys:
            return Supply(None, noise)
        shape = (self.keys,) if repeats is None else (repeats, self.keys)
        one = math.prod(shape) == 1
        keys = parts[-1][None] if one else jax.random.split(parts[-1], shape)
        return Supply(keys[None] if one and repeats else keys, noise)

    def _pooled(self, key: Array) -> list[Array]:
        kinds = sorted({kind for kind, _ in self.noise})
        keys = [key] if len(kinds) < 2 else jax.random.split(key, len(kinds))
        sizes = {k: sum(math.prod(s) for kind, s in self.noise if kind == k) for k in kinds}
        pools = {k: _DRAW[k](part, (sizes[k],)) for k, part in zip(kinds, keys, strict=False)}
        used, out = dict.fromkeys(kinds, 0), []
        for kind, shape in self.noise:
            start, size = used[kind], math.prod(shape)
            used[kind] += size
            whole = pools[kind] if size == sizes[kind] else pools[kind][start : start + size]
            out.append(whole.reshape(shape))
        return out

    def _separate(self, key: Array, repeats: int) -> list[Array]:
        count = len(self.noise)
        keys = [key] if count < 2 else jax.random.split(key, count)
        return [
            _DRAW[kind](part, (repeats, *shape))
            for (kind, shape), part in zip(self.noise, keys, strict=False)
        ]


@jax.tree_util.register_dataclass
@dataclass
class Supply:
    """The numbers of one run of a scope, taken in the order of the program."""

    keys: Array
    draws: list[Array]

    def __post_init__(self) -> None:
        self.used = Need()

    def key(self) -> Array:
        """The next key."""
        self.used.keys += 1
        return self.keys[self.used.keys - 1]

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """The next standard normals or uniforms."""
        self.used.noise.append((kind, shape))
        return self.draws[len(self.used.noise) - 1]


class Recorder:
    """Stands in for a supply while the sites are found, and lists what they ask for."""

    def __init__(self, key: Array) -> None:
        self.used, self._key = Need(), key

    def key(self) -> Array:
        """Some key."""
        self.used.keys += 1
        return self._next()

    def noise(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Some noise."""
        self.used.noise.append((kind, shape))
        return _DRAW[kind](self._next(), shape)

    def _next(self) -> Array:
        return jax.random.fold_in(self._key, self.used.keys + len(self.used.noise))
