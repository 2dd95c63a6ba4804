r"""Text files that users give: one place for their encoding, their lines and their JSON.

Files are UTF-8, with or without a byte order mark. A line ends at ``\n`` or ``\r\n`` and nowhere
else: ``str.splitlines`` would cut a prompt at a form feed, at U+0085 and at U+2028.
"""

import json
from pathlib import Path
from typing import Any

from infer_align.cli.errors import Stop

UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises
    ------
    Stop
        If it cannot be read, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Stop(f"{path} cannot be read ({error.strerror}): give a file") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = "UTF-16" if raw.startswith(UTF_16) else f"byte {raw[error.start]:#04x} in it"
        raise Stop(
            f"{path}, line {line}: not UTF-8 text ({found}); save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> list[str]:
    """The lines of a file without their ends; what follows the last end is a line, too."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text is.

    Parameters
    ----------
    text : str
    where : str
        File and line, for the message.

    Raises
    ------
    Stop
        If it is no JSON, no object, nested too deeply, or holds half of a surrogate pair, which
        no text has.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise Stop(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise Stop(f"{where}: lists or objects in it are nested too deeply to be read") from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise Stop(
            f"{where}: {half} is half of a surrogate pair and no character: leave it out, or write "
            "both halves"
        ) from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise Stop(f"{where}: not JSON that can be read ({error})") from error
    if not isinstance(value, dict):
        raise Stop(f"{where}: a JSON {_kind(value)}; an object is needed, {{...}}")
    return value


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = {list: "list", str: "text"}
    return kinds.get(type(value), "number")
