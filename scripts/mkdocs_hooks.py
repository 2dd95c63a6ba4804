"""MkDocs hook: one page per percent script in tutorials/, made at build time.

Prose comes from `# %% [markdown]` cells, code from the others. The scripts themselves are run
by `make test`; their outputs are not part of the site.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
CELL = re.compile(r"^# %%(?P<header>.*)$", re.MULTILINE)


def render(script: str) -> str:
    """Markdown of a percent script."""
    pieces = CELL.split(script)
    head, cells = pieces[0].strip(), zip(pieces[1::2], pieces[2::2], strict=True)
    page = [head.strip("\"'").strip()] if head.startswith(('"""', 'r"""')) else []
    for header, body in cells:
        body = body.strip("\n")
        if "[markdown]" in header:
            text = body.strip()
            if text.startswith(('"""', 'r"""')):
                page.append(text.lstrip("r").strip('"').strip())
            else:
                page.append("\n".join(re.sub(r"^# ?", "", line) for line in body.splitlines()))
        elif body:
            page.append(f"```python\n{body}\n```")
    return "\n\n".join(page) + "\n"


def title(script: str, stem: str) -> str:
    """The first heading of the prose, or the file's stem."""
    found = re.search(r"^(?:# )?# (.+)$", render(script), re.MULTILINE)
    return found[1].strip() if found else stem


def scripts() -> list[Path]:
    """The numbered tutorials, in order."""
    return sorted((ROOT / "tutorials").glob("[0-9]*.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the tutorials into the navigation."""
    pages = [
        {title(path.read_text(encoding="utf-8"), path.stem): f"tutorials/{path.stem}.md"}
        for path in scripts()
    ]
    for entry in config.nav or []:
        if "Tutorials" in entry:
            entry["Tutorials"] = ["tutorials/index.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add their pages."""
    for path in scripts():
        text = render(path.read_text(encoding="utf-8"))
        note = f"*This page is the script `tutorials/{path.name}`, run by `make test`.*\n"
        if not text.startswith("# "):
            text = f"# {path.stem}\n\n{text}"
        files.append(
            File.generated(config, f"tutorials/{path.stem}.md", content=text + "\n" + note)
        )
    return files
