"""The contexts of a conditional target: prompts, and the data columns its program reads."""

import copy
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer_align._arguments import mapping
from infer_align.targets import Target
from infer_align.torch.pyro import Program, context_names
from infer_align.torch.pyro import target as as_target


@dataclass(frozen=True)
class Contexts:
    """Prompts and columns, and how they reach a target and a policy.

    Parameters
    ----------
    prompts : list or None
        ``None`` for an unconditional target.
    columns : tuple of lists
        In the order in which the program takes them after the prompts.
    takes_prompts : bool
        Whether the target has the prompts as its first argument.
    """

    prompts: Sequence[Any] | None
    columns: tuple[Sequence[Any], ...]
    takes_prompts: bool

    def __len__(self) -> int:
        return 1 if self.prompts is None else len(self.prompts)

    def of_policy(self, ids: Tensor) -> tuple[Any, ...]:
        """Arguments of the policy for some of the contexts."""
        return () if self.prompts is None else (_pick(self.prompts, ids),)

    def of_target(self, ids: Tensor) -> tuple[Any, ...]:
        """Arguments of the target for some of the contexts."""
        if not self.takes_prompts:
            return ()
        prompts = None if self.prompts is None else _pick(self.prompts, ids)
        return (prompts, *(_pick(c, ids) for c in self.columns))

    def ids(self, chosen: Tensor, like: Tensor) -> Tensor:
        """Context ids as `LogWeights` has them, for log-probabilities like these.

        Without prompts the contexts are those of the distributions themselves, in order.
        """
        if self.prompts is not None:
            return chosen.to(like.device)
        shape = like.shape[1:]
        return torch.arange(shape.numel(), device=like.device).reshape(shape)


def bind(
    target: Target | Program,
    prompts: Sequence[Any] | None,
    columns: Mapping[str, Sequence[Any]] | None,
) -> tuple[Target, Contexts]:
    """A target and its contexts, with the columns found by the program's argument names.

    Raises
    ------
    TypeError
        For a target that is none, or prompts or a column that are no list.
    ValueError
        For no prompts in the list, a column that the program lacks or that is missing, or a
        column of another length than the prompts.
    """
    check_target(target)
    # Lists: a pandas column is read by its index, a text by its letters.
    columns = {
        name: as_list(values, f"column {name!r}")
        for name, values in mapping("columns", columns, entries="lists").items()
    }
    prompts = None if prompts is None else as_list(prompts, "prompts")
    if prompts is not None and not prompts:
        raise ValueError("prompts is an empty list; give at least one, or None for no prompt")
    if isinstance(target, Target):
        if columns:
            raise ValueError(
                f"columns {sorted(columns)} cannot reach target {target.name!r}, which is not a "
                "program; write the target as a Pyro program with arguments of these names"
            )
        return target, Contexts(prompts, (), prompts is not None)
    names = context_names(target)
    if prompts is not None and not names:
        raise ValueError(
            f"{len(prompts)} prompts were given and the program takes no argument; write it as "
            "def program(prompts): ..., or leave the prompts out"
        )
    wanted = names[1:]
    if set(wanted) != set(columns):
        raise ValueError(
            f"the program's arguments after the prompts are {wanted} and the columns given are "
            f"{sorted(columns)}; give a column for each argument, and no other"
        )
    for name, values in columns.items():
        if prompts is None or len(values) != len(prompts):
            raise ValueError(
                f"column {name!r} has {len(values)} entries for "
                f"{0 if prompts is None else len(prompts)} prompts; give one for each prompt"
            )
    ordered = tuple(columns[name] for name in wanted)
    return as_target(target), Contexts(prompts, ordered, bool(names))


def check_target(target: Any) -> None:
    """Refuse what is no target; TypeError."""
    if not isinstance(target, Target) and not callable(target):
        raise TypeError(
            f"a target is a Pyro program (a function) or a Target, got {target!r} "
            f"({type(target).__name__})"
        )


def as_list(values: Any, what: str) -> list[Any]:
    """The entries of prompts or of a column, one a context.

    Raises
    ------
    TypeError
        For a text, a mapping, a set, or what has no entries.
    """
    if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
        raise TypeError(
            f"{what} is of type {type(values).__name__}; it must be a list, one entry per context"
        )
    return list(values)


def check_callable(what: str, policy: Any, *, fitted: bool = False) -> None:
    """Refuse what is no policy: a callable from contexts to a distribution.

    Raises
    ------
    TypeError
    """
    a_law = isinstance(policy, torch.distributions.Distribution)
    if fitted and isinstance(policy, type):
        name = policy.__name__
        raise TypeError(f"{what} is the class {name}; make one of it: {name}(...)")
    if (
        a_law
        or not callable(policy)
        or (fitted and not callable(getattr(policy, "parameters", None)))
    ):
        also = ", with .parameters(), such as a CausalLM or a torch module" if fitted else ""
        raise TypeError(
            f"{what} must be a callable from contexts to a distribution{also}; got "
            f"{'the distribution ' if a_law else ''}{type(policy).__name__}"
            + ("; write lambda: distribution" if a_law and not fitted else "")
        )


def _pick(values: Sequence[Any], ids: Tensor) -> list[Any]:
    """Some entries: copies of lists and dicts (token ids, messages), which user code may edit."""
    some = [values[i] for i in torch.atleast_1d(ids).tolist()]
    return [copy.deepcopy(x) if isinstance(x, list | dict) else x for x in some]
