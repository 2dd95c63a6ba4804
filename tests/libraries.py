"""The array libraries beside NumPy, for tests of the core; one that is absent skips what uses it.

A test that needs NumPyro, Pyro or a backend of ours imports it as usual: the conftest.py of the
root does not collect a module whose libraries are not installed.
"""

import importlib
from typing import Any

import pytest


class _Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        pytest.skip(f"{self._name} is not installed", allow_module_level=True)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        return _Absent(name)


jax, jnp, torch = (_library(name) for name in ("jax", "jax.numpy", "torch"))
