"""Prompt files: text with one prompt a line, or JSON lines whose columns reach the program."""

import json
from pathlib import Path
from typing import Any

from infer_align.cli.errors import Stop

NO_PROMPT = "(no prompt)"
FORMS = 'a .txt file with one prompt a line, or a .jsonl file with a "prompt" column'


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
        For a missing or empty file, another kind, bad JSON, or a line without a column.
    """
    if not path.is_file():
        raise Stop(f"no prompts file {path}: give {FORMS}")
    if path.suffix not in (".txt", ".jsonl"):
        raise Stop(f"{path} is neither .txt nor .jsonl: give {FORMS}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Stop(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise Stop(f"{path} has no prompt: give {FORMS}")
    if path.suffix == ".txt":
        return [line for _, line in numbered], {}
    rows = [_row(path, i, line) for i, line in numbered]
    names = list(rows[0])
    for (i, _), row in zip(numbered, rows, strict=True):
        if missing := (set(names) | {"prompt"}) - set(row):
            raise Stop(f"{path}, line {i}: no {_quoted(missing)}; every line has the same columns")
        if extra := set(row) - set(names):
            raise Stop(
                f"{path}, line {i}: {_quoted(extra)} is not in the first line; every line has the "
                "same columns"
            )
    columns = {name: [row[name] for row in rows] for name in names}
    return columns.pop("prompt"), columns


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise Stop(f"{path}, line {number}: not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise Stop(f'{path}, line {number}: not a JSON object, such as {{"prompt": "..."}}')
    return row


def _quoted(names: set[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))


def label(prompt: Any) -> str:
    """A prompt in a few words, for tables and reports."""
    if prompt is None:
        return NO_PROMPT
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        return str(prompt[-1].get("content", prompt))
    return str(prompt)
