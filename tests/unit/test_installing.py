"""What a missing library says, and the lower bounds that are tried."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from infer_align._arguments import installed

ABSENT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(name, name=name)

import importlib.util as util
real = util.find_spec
util.find_spec = lambda name, *a: None if name == {library!r} else real(name, *a)
sys.meta_path.insert(0, Absent())
try:
    import infer_align.{package}
except ImportError as error:
    print(error.name, "|", error)
"""


@pytest.mark.parametrize(
    ("package", "library"), [("jax", "numpyro"), ("jax", "optax"), ("torch", "pyro")]
)
def test_a_package_without_its_libraries_says_what_to_install(package, library):
    pytest.importorskip(package)
    code = ABSENT.format(package=package, library=library)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = (
        f"{library} | infer_align.{package} needs {library}, which is not installed: "
        f"pip install 'infer_align[{package}]'"
    )
    assert done.stdout.strip() == expected, done.stderr[-300:]


def test_what_is_installed_passes():
    installed("a package", "an extra", "math", "json")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'infer_align\[torch\]'") as caught:
        installed("infer_align.torch", "torch", "json", "no_such_library")
    assert caught.value.name == "no_such_library"


@pytest.fixture(scope="module")
def oldest():
    path = Path(__file__).resolve().parents[2] / "scripts" / "oldest.py"
    spec = importlib.util.spec_from_file_location("oldest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lower_bounds_are_pinned_and_the_highest_of_two_wins(oldest):
    pins = oldest.lower_bounds(["a>=1.2,<3", "b[x]>=0.8", "a >= 1.10", "c!=2,>=1.9.1"])
    assert pins == ["a==1.10", "b[x]==0.8", "c==1.9.1"]
    with pytest.raises(ValueError, match=r"'typer' in pyproject.toml has no lower bound"):
        oldest.lower_bounds(["numpy>=2", "typer"])


def test_every_requirement_of_the_core_and_of_jax_has_a_lower_bound(oldest):
    core = oldest.lower_bounds(oldest.requirements_of(()))
    both = oldest.lower_bounds(oldest.requirements_of(("jax",)))
    named = lambda pins: {pin.partition("==")[0].partition("[")[0] for pin in pins}
    assert {"numpy", "scipy", "typer", "h5netcdf"} <= named(core)
    assert named(both) == named(core) | {"jax", "numpyro", "optax"}


def test_what_needs_an_absent_library_is_skipped_and_a_typo_is_an_error(tmp_path, root):
    conftest = (root / "conftest.py").read_text(encoding="utf-8")
    assert '"sacrebleu"' in conftest
    (tmp_path / "conftest.py").write_text(conftest.replace('"sacrebleu"', '"no_such_extra"'))
    for name, line, inside in (
        ("whole", "import no_such_extra.part", "pass"),
        ("typo", "import no_such_library", "pass"),
        ("inside", "", "import no_such_extra"),
        ("says", "", "assert not 'no_such_extra, which is not installed'"),
        ("wrong", "", "assert 0"),
    ):
        text = f"{line}\n\n\ndef test_it():\n    {inside}\n"
        (tmp_path / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    options = ["-c", "/dev/null", "--continue-on-collection-errors", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert "no_such_extra is not installed" in done.stdout
    assert "ERROR collecting test_typo.py" in done.stdout
    assert "1 failed, 3 skipped, 1 error" in done.stdout
