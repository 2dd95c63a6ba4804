"""Imported before all else: says what to install where it is missing."""

from infer_align._arguments import installed

installed("infer_align.torch", "torch", "torch", "pyro", "transformers", "peft")
