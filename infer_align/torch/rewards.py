"""Reward functions of the field, evaluated on outcomes inside a Pyro program.

The contract is that of TRL's trainers: ``reward(prompts, completions, **columns)``, called by
keyword, one number a completion. Token ids stay the truth: text is decoded for the reward only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infer_align.torch.calling import Reward, arguments_of, call, name_of, numbers
from infer_align.torch.contexts import as_list
from infer_align.torch.policies import CausalLM
from infer_align.torch.prompts import is_chat, token_ids

__all__ = ["score"]

OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords that a reward may name; columns must have other names."""


def score(
    reward: Reward | Sequence[Reward],
    y: Tensor,
    lm: CausalLM,
    prompts: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> Tensor:
    r"""Values of reward functions on outcomes: what a program divides by beta and factors in.

    .. math:: r(y) = \sum_{k \text{ applies to } y} w_k r_k(y)

    A reward function is one of TRL's: called by keyword with ``prompts``, ``completions``,
    ``completion_ids`` (EOS included), the columns, ``trainer_state``, ``log_extra`` and
    ``log_metric``, as far as its signature has them. It returns one number a completion: a list,
    a NumPy array, a pandas column or a tensor. ``-inf`` rejects an outcome; ``None`` says that
    the reward does not apply to it. It may be an ``async def``; several of them run side by side.

    A prompt in messages has its completion as ``[{"role": "assistant", "content": text}]``, a
    prompt in text as text; a prompt in token ids arrives as the text that they stand for.

    Parameters
    ----------
    reward : callable, or a sequence of them
        See above. A model is one through `classifier`.
    y : int tensor (n, *contexts, T)
        Outcomes.
    lm : CausalLM
        Decodes them.
    prompts : list, optional
        The contexts; ``None`` for an unconditional model.
    columns : mapping from name to list, optional
        Data columns, one entry a prompt, passed on to the rewards that read them.
    weights : sequence of float, optional
        One for each reward; 1 by default. A reward of weight 0 adds nothing, ``-inf`` neither.

    Returns
    -------
    float64 tensor (n, *contexts)

    Raises
    ------
    TypeError
        For a reward that is no function.
    ValueError
        For a reward that asks for what is not there or returns no list of numbers, NaN, +inf or
        a wrong number of them; for an outcome to which no reward applies, and a column that no
        reward reads or that has another length.
    RuntimeError
        For a reward that raises or exits; its own exception is the cause.

    Examples
    --------
    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=8,
    ...                     bos_token_id=0, eos_token_id=4)
    >>> class Letters:  # stands for a tokenizer
    ...     def batch_decode(self, rows, **options):
    ...         return ["".join("?abc."[i] for i in row) for row in rows]
    >>> lm = CausalLM(GPT2LMHeadModel(config), None, max_new_tokens=3)
    >>> lm.tokenizer = Letters()
    >>> def count(completions, letter):
    ...     return [c.count(x) for c, x in zip(completions, letter)]
    >>> def short(completion_ids):
    ...     return [-float(len(ids)) for ids in completion_ids]
    >>> y = torch.tensor([[[1, 1, 2], [3, 4, 4]]])  # one outcome for each of two prompts
    >>> score([count, short], y, lm, ["x", "y"], {"letter": ["a", "c"]}, weights=[1.0, 0.5])
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    rewards = _rewards(reward)
    scale = _weights(weights, len(rewards))
    shape = y.shape[:-1]
    rows = y.reshape(-1, y.shape[-1])
    contexts = [None] if prompts is None else as_list(prompts, "prompts")
    repeat = _repeat(shape, None if prompts is None else len(contexts))
    columns = _columns(columns or {}, len(contexts))
    texts = [_text(p, i, lm) for i, p in enumerate(contexts)]
    completions = lm.decode(rows)
    ids = [r[:k] for r, k in zip(rows.tolist(), lm.lengths(rows).tolist(), strict=True)]
    turns = [is_chat(p) for p in texts] * repeat
    # A reward may change its arguments as it likes: each is made anew, for it alone.
    make: dict[str, Callable[[], Any]] = {
        "prompts": lambda: [_own(p) for _ in range(repeat) for p in texts],
        "completions": lambda: [
            _turn(c) if t else c for c, t in zip(completions, turns, strict=True)
        ],
        "completion_ids": lambda: [list(row) for row in ids],
        "trainer_state": _trainer_state,
        "log_extra": lambda: _drop,
        "log_metric": lambda: _drop,
    }
    for name, entries in columns.items():
        make[name] = lambda entries=entries: [_own(v) for _ in range(repeat) for v in entries]
    taken = [arguments_of(r, list(make)) for r in rewards]
    if unread := [name for name in columns if not any(name in names for names in taken)]:
        raise ValueError(
            f"columns {unread} are read by no reward ({', '.join(map(name_of, rewards))}); give "
            "the reward an argument of this name, or leave the column out"
        )
    outputs = call(rewards, [{name: make[name]() for name in names} for names in taken])
    values = [numbers(v, r, completions) for v, r in zip(outputs, rewards, strict=True)]
    return _total(torch.stack(values), scale, rewards, completions).reshape(shape).to(y.device)


def _rewards(reward: Any) -> list[Reward]:
    several = isinstance(reward, Sequence) and not isinstance(reward, str | bytes)
    rewards: list[Any] = list(reward) if several else [reward]
    if not rewards:
        raise ValueError("the list of rewards is empty: give at least one reward function")
    for one in rewards:
        if isinstance(one, nn.Module) and "input_ids" in signature(one.forward).parameters:
            raise TypeError(
                f"the reward is a {type(one).__name__}, which reads token ids of its own: make it "
                "a reward function with classifier(model, tokenizer)"
            )
        if not callable(one):
            raise TypeError(
                f"the reward is {one!r} of type {type(one).__name__}; it must be a function "
                "reward(prompts, completions, ...) that returns one number a completion"
            )
    return rewards


def _weights(weights: Sequence[float] | None, count: int) -> Tensor:
    if weights is None:
        return torch.ones(count, 1, dtype=torch.float64)
    plain = [float(w) for w in as_list(weights, "weights")]
    if len(plain) != count:
        raise ValueError(f"{len(plain)} weights were given for {count} rewards: give one for each")
    if bad := [w for w in plain if not math.isfinite(w)]:
        raise ValueError(f"a weight of a reward is {bad[0]}; it must be a finite number")
    return torch.tensor(plain, dtype=torch.float64)[:, None]


def _repeat(shape: torch.Size, contexts: int | None) -> int:
    """How often the prompts stand one after another in the rows."""
    if contexts is None:
        return math.prod(shape)
    if contexts != math.prod(shape[1:]):
        raise ValueError(
            f"{contexts} prompts were given for outcomes y of shape (n, *contexts, T) with "
            f"contexts {tuple(shape[1:])}; give the prompts that y was drawn for"
        )
    return shape[0]


def _columns(columns: Mapping[str, Any], contexts: int) -> dict[str, list[Any]]:
    lists = {name: as_list(values, f"column {name!r}") for name, values in columns.items()}
    for name, values in lists.items():
        if name in OURS:
            raise ValueError(
                f"a column may not be called {name!r}, which a reward gets anyway: rename it"
            )
        if len(values) != contexts:
            raise ValueError(
                f"column {name!r} has {len(values)} entries for {contexts} prompts; give one for "
                "each prompt"
            )
    return lists


def _text(prompt: Any, number: int, lm: CausalLM) -> Any:
    """A prompt as a reward reads it: text or messages, ids decoded without the BOS of encoding."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if is_chat(prompt):
        return [dict(message) for message in prompt]
    ids = token_ids(prompt, f"prompt {number}")
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise ValueError("this CausalLM has no tokenizer, so its prompts have no text")
    if ids[:1] == [tokenizer.bos_token_id]:
        ids = ids[1:]
    return str(tokenizer.decode(ids))


def _own(x: Any) -> Any:
    """A copy of plain containers and arrays, however deep; anything else as it is."""
    if isinstance(x, dict):
        return {k: _own(v) for k, v in x.items()}
    if isinstance(x, list | tuple) and type(x) in (list, tuple):
        return type(x)(_own(v) for v in x)
    if isinstance(x, Tensor):
        return x.clone()
    return x.copy() if isinstance(x, np.ndarray) else x


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _trainer_state() -> Any:
    # Nothing is trained here; TRL's rewards find the fields that they expect, at step 0.
    from transformers import TrainerState

    return TrainerState()


def _drop(name: str, values: Any) -> None:
    """TRL's ``log_extra`` and ``log_metric``: there is no completions table here."""


def _total(
    values: Tensor, scale: Tensor, rewards: Sequence[Reward], completions: Sequence[str]
) -> Tensor:
    """The weighted sum over the rewards that apply."""
    applies = ~values.isnan()
    if not bool(applies.any(0).all()):
        nowhere = (~applies.any(0)).nonzero()[:, 0].tolist()
        names = " and ".join(repr(name_of(r)) for r in rewards)
        raise ValueError(
            f"reward {names} returned None for {len(nowhere)} of {len(completions)} completions, "
            f"the first {completions[nowhere[0]]!r}: no reward applies there, so the target has no "
            "value; return 0.0 for no preference, -inf to reject the outcome, or add a reward "
            "that applies"
        )
    weighted = torch.where(applies & (scale != 0), scale * values, 0.0)
    if bool((weighted == math.inf).any()):
        raise ValueError(
            "a negative weight turns a rejection, -inf, into +inf: reject in a reward of positive "
            "weight"
        )
    return weighted.sum(0)
