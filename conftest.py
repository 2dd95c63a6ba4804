"""The environment of every test and doctest: one thread, float64, no network, no windows.

Set before anything imports torch or JAX, and without importing them: the core's tests stay
cheap. The library itself never touches these settings.
"""

import os
import re
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

# With two workers on two cores, oversubscribed threads cost 20x.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["JAX_ENABLE_X64"] = "1"  # the exact tests compare to rtol 1e-9
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"


def _refuse(*args: object, **kwargs: object) -> None:
    raise RuntimeError(
        f"a test tried to reach the network: {args[-1] if args else kwargs}. Tests use what is "
        "in the repository or in an installed package; make a tiny model or data set instead."
    )


class _OfflineSocket(socket.socket):
    """A socket that connects inside this machine only by file (AF_UNIX)."""

    def connect(self, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(address)
        super().connect(address)  # type: ignore[arg-type]

    def connect_ex(self, address: object) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(address)
        return super().connect_ex(address)  # type: ignore[arg-type]


socket.socket = _OfflineSocket  # type: ignore[misc]
socket.getaddrinfo = _refuse  # type: ignore[assignment]

# What the extras bring: without them the core's own tests run.
OPTIONAL = {
    "jax", "numpyro", "optax", "torch", "pyro", "transformers", "peft", "safetensors", "sacrebleu",
    "huggingface_hub",
}  # fmt: skip


def _lacks(error: BaseException | None) -> str | None:
    """The optional library for whose absence something failed, also in a program that it ran."""
    while error is not None:
        inside = getattr(error, "exc_info", (None, None))[1]  # of a doctest
        words = f"{error} {inside if inside is not None else ''}"
        for library in OPTIONAL:
            absent = rf"No module named '{library}\b|\b{library}[a-z ,]* is not installed"
            if re.search(absent, words) and find_spec(library) is None:
                return library
        error = error.__cause__ or error.__context__
    return None


def _skip(report: Any, call: Any, path: Any) -> Any:
    error = getattr(call and call.excinfo, "value", None)
    if report.outcome == "failed" and (library := _lacks(error)):
        report.outcome = "skipped"
        report.longrepr = (str(path), 0, f"Skipped: {library} is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    """Skip a module whose libraries are not installed; any other failed import stays an error."""
    report = yield
    return _skip(report, getattr(report, "call", None), collector.path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[Any]:
    """Skip a test that imports one of them itself, or runs what does."""
    return _skip((yield), call, item.path)
