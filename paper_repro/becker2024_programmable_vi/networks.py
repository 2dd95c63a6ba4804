"""Affine layers by name, for the networks of the other files."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def initial_layers(key: Any, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Random weights, and biases of 0, of layers by their sizes."""
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(k, size) / size[0] ** 0.5, jnp.zeros(size[1]))
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def layer(params: Any, name: str, x: Any) -> Any:
    """Affine."""
    weight, bias = params[name]
    return x @ weight + bias
