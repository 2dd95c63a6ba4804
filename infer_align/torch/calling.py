"""Calling reward functions: by keyword, plain or async, and what they give back as numbers."""

import asyncio
import functools
import inspect
import math
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Reward = Callable[..., Any]


def arguments_of(reward: Reward, offered: list[str]) -> list[str]:
    """Names of the arguments that a reward takes."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # a compiled function does not say
        return offered
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [
        p.name
        for p in named
        if p.default is p.empty and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if unknown or not (named or open_ended):
        raise ValueError(
            f"reward {name_of(reward)!r} needs {unknown or 'arguments'}, and it is called by "
            f"keyword with {offered}: name its arguments so, or give columns of these names"
        )
    return offered if open_ended else [p.name for p in named if p.name in offered]


def _inner(reward: Reward) -> Any:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.unwrap(reward)


def name_of(reward: Reward) -> str:
    """The name of a reward, for messages."""
    inner = _inner(reward)
    return getattr(inner, "__name__", type(inner).__name__)


def call(rewards: Sequence[Reward], arguments: Sequence[dict[str, Any]]) -> list[Any]:
    """What the rewards return: plain functions in order, then the coroutines side by side."""
    outputs: list[Any] = []
    try:
        for reward, given in zip(rewards, arguments, strict=True):
            with _named(reward):
                output = reward(**given)
                outputs.append(list(output) if isinstance(output, Iterator) else output)
        waiting = [i for i, output in enumerate(outputs) if inspect.isawaitable(output)]
        if waiting:
            done = _run(_wait([outputs[i] for i in waiting], [rewards[i] for i in waiting]))
            for i, output in zip(waiting, done, strict=True):
                outputs[i] = output
    finally:
        for output in outputs:
            if inspect.iscoroutine(output):
                output.close()  # begun by a reward, and another one failed
    return outputs


async def _wait(outputs: list[Any], rewards: list[Reward]) -> list[Any]:
    async def one(output: Any, reward: Reward) -> Any:
        with _named(reward):  # inside: a SystemExit would end the loop's thread
            return await output

    tasks = [asyncio.ensure_future(one(o, r)) for o, r in zip(outputs, rewards, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _run(coroutine: Any) -> Any:
    loop = _loop()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError(
            "an async reward called score with another async reward, which would wait for itself: "
            "await the other reward instead"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for the process, in a thread: a notebook's is running already.

    A reward may keep a connection between calls, which belongs to the loop that made it.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="infer_align rewards", daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loop.cache_clear)  # a child lacks the loop's thread


@contextmanager
def _named(reward: Reward) -> Iterator[None]:
    """What a reward raises, with its name and the line of it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        inner = _inner(reward)
        code = getattr(inner, "__code__", getattr(type(inner).__call__, "__code__", None))
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [f for f in frames if code is not None and f.filename == code.co_filename]
        last = next(iter(reversed(own or frames)), None)
        where = "" if last is None else f" (in {last.name}, {last.filename}, line {last.lineno})"
        said = f"raised {type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, SystemExit):
            said = f"called sys.exit({'' if error.code is None else error.code})"
        raise RuntimeError(f"reward {name_of(reward)!r} {said}{where}") from error


def numbers(output: Any, reward: Reward, completions: Sequence[str]) -> Tensor:
    """The numbers of one reward, NaN where it does not apply."""
    name, count = name_of(reward), len(completions)
    wanted = "it must return a list with one number for each"
    if hasattr(output, "ndim") and hasattr(output, "tolist"):  # NumPy, pandas, torch, JAX
        if output.ndim != 1:
            shape = tuple(output.shape)
            raise ValueError(
                f"reward {name!r} returned an array of shape {shape} for {count} completions; "
                f"{wanted}"
            )
        output = output.tolist()
    if not isinstance(output, Sequence) or isinstance(output, str | bytes | bytearray):
        raise ValueError(
            f"reward {name!r} returned no list for {count} completions but a "
            f"{type(output).__name__}; {wanted}"
        )
    if len(output) != count:
        raise ValueError(
            f"reward {name!r} returned {len(output)} values for {count} completions; {wanted}"
        )
    found = [_number(v, name) for v in output]
    bad = [i for i, v in enumerate(found) if v is not None and (math.isnan(v) or v == math.inf)]
    if bad:
        raise ValueError(
            f"reward {name!r} returned {output[bad[0]]} for {len(bad)} of {count} completions, the "
            f"first {completions[bad[0]]!r}; return a finite number, -inf to reject the outcome, "
            "or None where the reward does not apply"
        )
    return torch.tensor([math.nan if v is None else v for v in found], dtype=torch.float64)


def _number(value: Any, name: str) -> float | None:
    if value is None or type(value).__name__ == "NAType":  # pandas' None
        return None
    try:
        if isinstance(value, str | bytes | bytearray):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"reward {name!r} returned {value!r} of type {type(value).__name__} for a completion; "
            "it must return one number for each"
        ) from error
