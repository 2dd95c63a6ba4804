"""Imported before all else: says what to install where it is missing."""

from infer_align._arguments import installed

installed("infer_align.jax", "jax", "jax", "numpyro", "optax")
