"""The gates that nobody looks at can fail: each is shown a planted fault."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_not_built_with_a_broken_link(root: Path, tmp_path: Path) -> None:
    ci = load_script(root / "scripts" / "ci.py")
    for name in ("docs", "scripts", "tutorials"):
        shutil.copytree(root / name, tmp_path / name)
    shutil.copy(root / "mkdocs.yml", tmp_path)
    # The API pages need the whole package read; one small module stands in for it.
    package = tmp_path / "infer_align"
    package.mkdir()
    (package / "__init__.py").write_text(
        '"""A package."""\n\n\ndef f(x):\n    """One.\n\n    Parameters\n    ----------\n'
        '    y : int\n        Planted: f has no y.\n    """\n'
    )
    for page in (tmp_path / "docs" / "api").glob("*.md"):
        page.write_text("# Emptied\n")
    (tmp_path / "docs" / "api" / "jax.md").write_text("# A module\n\n::: infer_align\n")
    (tmp_path / "docs" / "index.md").write_text(
        "# Home\n\n[a page](nowhere.md) and [an anchor](glossary.md#nowhere)\n"
    )
    done = subprocess.run(
        ci.BUILD_SITE,
        cwd=tmp_path,
        env={**os.environ, **ci.ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "'nowhere.md'" in said
    assert "#nowhere" in said
    assert "Parameter 'y' does not appear" in said


def test_a_name_that_the_site_lacks_is_found(root: Path, tmp_path: Path) -> None:
    site = load_script(root / "scripts" / "check_site.py")
    package = tmp_path / "infer_align" / "room"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text('__all__ = ["top"]\n')
    (package / "__init__.py").write_text('__all__ = ["a"]\n__all__ += ["b"]\n')
    (package / "plain.py").write_text('__all__: list[str] = ["c"]\n')
    (package / "_hidden.py").write_text('__all__ = ["d"]\n')
    assert site.public_names(tmp_path) == {
        "infer_align.room": ["a", "b"],
        "infer_align.room.plain": ["c"],
    }
    fetches = ['<script src="https://x.org/a.js">', "<link href=//x.org/a.css rel=stylesheet>"]
    assert all(site.FETCHED.search(text) for text in fetches)
    assert not site.FETCHED.search('<a href="https://x.org">')


def test_a_run_that_did_nothing_or_took_too_long_fails(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ci = load_script(root / "scripts" / "ci.py")
    ci.ROOT = tmp_path
    assert not ci.tutorials()
    assert not ci.papers()
    assert not ci.bench()
    minutes = [("environment", 4), ("lint", 1), ("types", 2), ("tests", 30), ("docs", 22)]
    rows = [ci.Row(name, 60.0 * m, True) for name, m in minutes]
    assert ci.report(rows) == []
    assert ci.report([*rows, ci.Row("papers", 90.0, True)]) == ["60 minutes in all, over 60"]
    assert ci.report([ci.Row("lint", 1.0, False)]) == ["lint"]
    assert ci.report([ci.Row("slow tests", 7200.0, True)]) == []  # a tier of its own
    assert "total" in capsys.readouterr().out


def test_a_planted_path_is_found(root: Path) -> None:
    hygiene = load_script(root / "tests" / "architecture" / "test_hygiene.py")
    for planted in ("/" + "work/x", '"/' + "root/", "https://py" + "pi.org/simple"):
        assert hygiene.FORBIDDEN.search(planted), planted
    assert not hygiene.FORBIDDEN.search("artwork/x and network")
