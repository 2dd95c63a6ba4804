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


def public_names(root: Path = ROOT) -> dict[str, list[str]]:
    """Module → its `__all__`, for the public modules and packages below the top."""
    names = {}
    for path in sorted((root / "infer_align").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if any(part.startswith("_") for part in parts) or "cli" in parts or len(parts) == 1:
            continue  # cli's surface is the command line; the top level lists other rooms' names
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else targets
            if any(ast.unparse(target) == "__all__" for target in targets):
                listed = list(ast.literal_eval(node.value))
                names.setdefault(".".join(parts), []).extend(listed)
    return names


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    known = inventory()
    missing = [
        f"{module}.{name}"
        for module, names in public_names().items()
        for name in names
        # A function that shadows its module (`torch.fit`) is found in the module.
        if not {f"{module}.{name}", f"{module}.{name}.{name}"} & known
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
