"""The public API, names with their signatures, as text: one line each, sorted.

A changed signature is a decision. `tests/architecture/public_api.txt` holds the lines of this tree,
and a test compares: `python scripts/public_api.py --write` brings it up to date, in the commit that
has the changelog's line. The sources are read, not imported.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOT = ROOT / "tests" / "architecture" / "public_api.txt"


def lines() -> list[str]:
    """One line for each public name, and for each public member of a public class."""
    package = griffe.load("infer_align", search_paths=[ROOT], resolve_aliases=True)
    top = [f"infer_align.{name}" for name in package.exports or ()]  # each is in a room, too
    rooms = [line for name in package.members for line in _room(package, name)]
    return sorted({*top, *rooms})


def _room(parent: Any, name: str) -> list[str]:
    """Of a public module and those in it; the command line's surface is its own help."""
    module = parent.members[name]
    if name.startswith("_") or name == "cli" or module.is_alias or not module.is_module:
        return []
    found = []
    for listed in module.exports or ():
        found += _named(f"{module.path}.{listed}", module.members[str(listed)])
    return found + [line for inner in module.members for line in _room(module, inner)]


def _named(path: str, member: Any) -> list[str]:
    member = member.final_target if member.is_alias else member
    if member.is_module:
        return [path]
    if member.is_attribute:
        return [f"{path}: {member.annotation}" if member.annotation else path]
    if member.is_function:
        return [path + _signature(member)]
    return [f"{path}({_constructor(member)})", *_members(path, member)]


def _constructor(owner: Any) -> str:
    if "__init__" in owner.members:
        return _arguments(owner.members["__init__"])
    fields = [member for member in owner.members.values() if "instance-attribute" in member.labels]
    tuples = [f"{x.name}={x.value}" if x.value else x.name for x in fields]
    return ", ".join(tuples) if "NamedTuple" in map(str, owner.bases) else ""


def _members(path: str, owner: Any) -> list[str]:
    """Public methods, properties and fields of a class."""
    found = []
    for name, member in owner.members.items():
        if name.startswith("_") or member.is_alias:
            continue
        if member.is_function:
            found.append(f"{path}.{name}{_signature(member)}")
        else:
            found.append(f"{path}.{name}: {member.annotation}")
    return found


def _signature(function: Any) -> str:
    returns = f" -> {function.returns}" if function.returns else ""
    return f"({_arguments(function)}){returns}"


def _arguments(function: Any) -> str:
    """As written, without self."""
    text = function.signature(return_type=False).partition("(")[2].rpartition(")")[0]
    first, _, rest = text.partition(", ")
    return rest if first in ("self", "cls") else text


def main() -> int:
    """Print the lines, or write the snapshot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"to {SNAPSHOT.relative_to(ROOT)}")
    text = "\n".join(lines()) + "\n"
    if parser.parse_args().write:
        SNAPSHOT.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
