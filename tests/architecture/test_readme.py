"""The README's python blocks run, and print what the README says.

All blocks share one namespace and run in order. A `text` block that follows a python block
directly is its exact output. `<!-- notest: why -->` on the line before exempts a block.
"""

import contextlib
import io
import re
from pathlib import Path

BLOCK = re.compile(
    r"(?P<skip><!-- notest: [^\n]+ -->\n)?```python\n(?P<code>.*?)```\n"
    r"(?:\s*```text\n(?P<output>.*?)```)?",
    re.DOTALL,
)


def test_readme_blocks(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python"), "a python block that the test cannot read"
    assert any(not block["skip"] for block in blocks), "no block of the README is executed"
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        if block["skip"]:
            continue
        line = text[: block.start("code")].count("\n")
        code = compile("\n" * line + block["code"], "README.md", "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block["output"] is not None:
            assert printed.getvalue().rstrip() == block["output"].rstrip(), f"line {line}"


def test_readme_starts_with_the_two_commands(root: Path) -> None:
    first_screen = "\n".join((root / "README.md").read_text(encoding="utf-8").splitlines()[:60])
    assert "make demo" in first_screen
    assert "make test" in first_screen
