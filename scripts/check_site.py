"""Check the built site: every public name has an entry, and no page fetches from another host."""

import ast
import re
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
# What a browser loads by itself; a link that a reader clicks is fine.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'> ]+"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev))[^>]*\bhref=[\"']?(?:https?:)?//[^\"'> ]+",
    re.IGNORECASE,
)


def inventory() -> set[str]:
    """The dotted names that the site documents, from its objects.inv."""
    data = (SITE / "objects.inv").read_bytes()
    body = zlib.decompress(data.split(b"\n", 4)[4]).decode("utf-8")
    return {line.split()[0] for line in body.splitlines() if line}


def public_names() -> dict[str, list[str]]:
    """Module → its `__all__`, for the public modules that define what they list."""
    names = {}
    for path in sorted((ROOT / "infer_align").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or "cli" in parts:
            continue  # the surface of cli is the command line
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names[".".join(parts)] = list(ast.literal_eval(node.value))
    return names


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    known = inventory()
    missing = [
        f"{module}.{name}"
        for module, names in public_names().items()
        for name in names
        if f"{module}.{name}" not in known
    ]
    fetched = [
        f"{page.relative_to(SITE)}: {match[0]}"
        for page in sorted(SITE.rglob("*.html"))
        for match in FETCHED.finditer(page.read_text(encoding="utf-8"))
    ]
    for line in missing:
        print(f"not on the site: {line}: give it a docstring, and its module a page in docs/api")
    for line in fetched:
        print(f"fetches from another host: {line}")
    print(f"site: {len(known)} names documented, {len(missing)} missing, {len(fetched)} fetches")
    return 1 if missing or fetched else 0


if __name__ == "__main__":
    sys.exit(main())
