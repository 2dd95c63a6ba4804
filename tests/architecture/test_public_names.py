"""Every public name is documented: module ↔ docs page, name ↔ entry.

The sources are parsed, not imported, so that this costs nothing.
"""

import ast
import importlib
import re
from pathlib import Path

import pytest

import infer_align

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "infer_align"
API = ROOT / "docs" / "api"
DIRECTIVE = re.compile(r"^::: (infer_align[\w.]*)", re.MULTILINE)


def public_modules() -> list[Path]:
    """The module files of which no part starts with an underscore, __init__ files included."""
    return sorted(
        path
        for path in PACKAGE.rglob("*.py")
        if not any(
            part.startswith("_") and part != "__init__.py"
            for part in path.relative_to(PACKAGE).parts
        )
        and path != PACKAGE / "__init__.py"
        and path.parent != PACKAGE / "cli"  # its surface is the command line
    )


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def listed_names(path: Path) -> list[str] | None:
    """The module's `__all__`, or None where it has none."""
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return None


def documented() -> set[str]:
    """Every dotted name that a page of docs/api renders."""
    pages = [page.read_text(encoding="utf-8") for page in sorted(API.glob("*.md"))]
    return {name for page in pages for name in DIRECTIVE.findall(page)}


@pytest.mark.parametrize("path", public_modules(), ids=dotted)
def test_public_names_are_documented(path: Path) -> None:
    """Of first-level modules and packages, and of inner modules that list public names."""
    names, module = listed_names(path), dotted(path)
    if names is None:
        inner = module.count(".") > 1
        assert inner, f"{module} needs an __all__: the list of its public names"
        return  # an implementation module: its package says what is public
    package = path.parent / "__init__.py"
    exported = (listed_names(package) or []) if package != PACKAGE / "__init__.py" else []
    pages = documented()
    missing = [
        name
        for name in names
        if not {module, f"{module}.{name}"} & pages
        and not (name in exported and dotted(package) in pages)
    ]
    assert not missing, f"docs/api/ has no '::: {module}' nor entries for {missing}"


@pytest.mark.parametrize("name", sorted(infer_align.__all__))
def test_top_level_name_is_in_the_api_index(name: str) -> None:
    index = (API / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"`{name}`", index), f"docs/api/index.md does not mention `{name}`"


def test_pages_document_modules_that_exist() -> None:
    for name in documented():
        path = ROOT.joinpath(*name.split("."))
        module, _, member = name.rpartition(".")
        is_module = path.is_dir() or path.with_suffix(".py").is_file()
        assert is_module or hasattr(importlib.import_module(module), member), name


@pytest.mark.parametrize("page", sorted(API.glob("*.md")), ids=lambda page: page.stem)
def test_same_stem_for_module_and_page(page: Path) -> None:
    if page.stem == "index":
        return
    modules = [*PACKAGE.rglob(page.stem), *PACKAGE.rglob(f"{page.stem}.py")]
    names = [".".join(m.relative_to(ROOT).with_suffix("").parts) for m in modules]
    text = page.read_text(encoding="utf-8")
    assert any(f"::: {name}" in text for name in names), names
