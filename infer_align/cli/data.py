"""Prompt files: text with one prompt a line, or JSON lines whose columns reach the program."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from infer_align.cli.errors import Stop
from infer_align.cli.text import parse_object, read_lines

NO_PROMPT = "(no prompt)"
FORMS = 'a .txt file with one prompt a line, or a .jsonl file with a "prompt" column'
KINDS = "a text, a list of chat messages, a list of token ids, or none"


def read_prompts(path: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Prompts and the other columns of a file; blank lines do not count.

    Parameters
    ----------
    path : pathlib.Path
        ``.txt``, or ``.jsonl``, where a prompt may also be a list of chat messages, a list of
        token ids, or null for none.

    Raises
    ------
    Stop
        For a missing or empty file, another kind, bad JSON, a line without a column, or a prompt
        of another kind.
    """
    if not path.is_file():
        raise Stop(f"no prompts file {path}: give {FORMS}")
    if path.suffix not in (".txt", ".jsonl"):
        raise Stop(f"{path} is neither .txt nor .jsonl: give {FORMS}")
    numbered = [(i, line) for i, line in enumerate(read_lines(path), 1) if line.strip()]
    if not numbered:
        raise Stop(f"{path} has no prompt: give {FORMS}")
    if path.suffix == ".txt":
        return [line for _, line in numbered], {}
    rows = [parse_object(line, f"{path}, line {i}") for i, line in numbered]
    names = list(rows[0])
    for (i, _), row in zip(numbered, rows, strict=True):
        if missing := (set(names) | {"prompt"}) - set(row):
            raise Stop(f"{path}, line {i}: no {_quoted(missing)}; every line has the same columns")
        if extra := set(row) - set(names):
            raise Stop(
                f"{path}, line {i}: {_quoted(extra)} is not in the first line; every line has the "
                "same columns"
            )
        _check(row["prompt"], f"{path}, line {i}")
    columns = {name: [row[name] for row in rows] for name in names}
    return columns.pop("prompt"), columns


def check_prompts(prompts: Any, path: Path) -> list[Any] | None:
    """The ``PROMPTS`` of a target file, or None for none.

    Raises
    ------
    Stop
        If they are no list, an empty one, or one of them is of another kind.
    """
    if prompts is None:
        return None
    if not isinstance(prompts, list | tuple):
        raise Stop(
            f"PROMPTS in {path} is of type {type(prompts).__name__}; it must be a list, and each "
            f"entry {KINDS}"
        )
    if not prompts:
        raise Stop(f"PROMPTS in {path} is empty: leave it out for no prompt at all")
    for i, prompt in enumerate(prompts):
        _check(prompt, f"PROMPTS[{i}] in {path}")
    return list(prompts)


def _check(prompt: Any, where: str) -> None:
    """Refuse what is no prompt; what the model makes of it is found out later."""
    if prompt is None or isinstance(prompt, str):
        return
    if hasattr(prompt, "tolist"):  # an array of token ids
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise Stop(f"{where}: the prompt is of type {type(prompt).__name__}; it must be {KINDS}")
    if not prompt:
        raise Stop(f"{where}: the prompt is an empty list; write null (None) for no prompt")
    if all(isinstance(m, dict) for m in prompt):
        if bad := next((m for m in prompt if not isinstance(m.get("role"), str)), None):
            raise Stop(f'{where}: the message {bad} has no "role" that is a text')
    elif bad := [x for x in prompt if isinstance(x, bool) or not isinstance(x, Integral)]:
        raise Stop(f"{where}: {bad[0]!r} in the prompt is no token id; a prompt must be {KINDS}")


def _quoted(names: set[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))


def label(prompt: Any) -> str:
    """A prompt in a few words, for tables and reports."""
    if prompt is None:
        return NO_PROMPT
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        return str(prompt[-1].get("content", prompt))
    return str(prompt)
