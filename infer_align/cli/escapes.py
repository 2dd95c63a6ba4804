"""Text and JSON of what others wrote: completions, prompts, names of files, messages of libraries.

A completion may hold any character. Those that move a terminal's cursor, clear its screen or turn
the reading order are shown as their escapes, in the terminal and in reports alike.
"""

import codecs
import json
import math
import re
from collections.abc import Mapping
from typing import Any

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""C0 but tab and newline, C1, line separators, bidi overrides, lone surrogates, byte order mark."""
SPELLED = "infer_align.spelled"
"""Error handler of `str.encode`: what an encoding lacks is spelled, or escaped."""
SPELLING = {
    "π": "pi", "β": "beta", "δ": "delta", "θ": "theta", "λ": "lambda", "χ": "chi", "Ẑ": "Z",
    "‖": "||", "−": "-", "–": "-", "—": "-", "±": "+-", "×": "x", "·": "*", "…": "...", "≤": "<=",
    "≥": ">=", "✓": "+", "✗": "-", "→": "->", "∞": "inf", "\u0302": "-hat", "’": "'",
    "“": '"', "”": '"', "━": "-", "╸": "-", "╺": "-", "─": "-",
}  # fmt: skip


def printable(text: str) -> str:
    r"""The text with control characters as escapes; newlines and tabs stay.

    >>> print(printable("\x1b[2J, \u202egnp.exe"))
    \x1b[2J, \u202egnp.exe
    """
    return CONTROL.sub(lambda found: _escape(found.group()), text)


def to_json(value: Any, *, ascii_only: bool = False, indent: int | None = None) -> str:
    r"""Strict JSON: numbers that are not finite are the texts "inf", "-inf" and "nan".

    One line without an ``indent``. Control characters are escaped, those too that JSON would let
    pass, and lone surrogates; every character that is not ASCII where ``ascii_only``.

    >>> print(to_json({"log_z": float("-inf"), "completion": "β\x9b2J"}))
    {"log_z": "-inf", "completion": "β\u009b2J"}
    """
    plain = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False, indent=indent)
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value


def spell(text: str, encoding: str) -> str:
    r"""The text in the characters that an encoding has.

    >>> print(spell("KL(π‖p) ≤ 2, 中", "latin-1"))
    KL(pi||p) <= 2, \u4e2d
    """
    return text.encode(encoding, SPELLED).decode(encoding)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    plain = (SPELLING.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found)
    return "".join(plain), error.end


codecs.register_error(SPELLED, _spelled)
