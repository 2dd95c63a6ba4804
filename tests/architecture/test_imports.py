"""A fresh `import infer_align` is cheap, and its lazy names work."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "pyro",
    "transformers",
    "jax",
    "numpyro",
    "scipy",
    "arviz",
    "arviz_base",
    "arviz_stats",
    "xarray",
    "pandas",
    "matplotlib",
    "typer",
    "rich",
)


def fresh(code: str) -> str:
    """What the code prints in a new interpreter that has loaded nothing of ours."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, infer_align; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code) == "[]"


@pytest.mark.parametrize(
    "module", ["divergences", "spaces", "estimators", "targets", "programs", "exact", "diagnostics"]
)
def test_core_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, infer_align.{module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert fresh(code) == "[]"


def test_every_lazy_name_works_and_is_listed() -> None:
    code = (
        "import infer_align as ia\n"
        "for name in ia.__all__:\n"
        "    assert getattr(ia, name) is not None, name\n"
        "assert set(ia.__all__) <= set(dir(ia)), set(ia.__all__) - set(dir(ia))\n"
        "print(len(ia.__all__))"
    )
    assert 10 <= int(fresh(code)) <= 40


def test_unknown_name_is_an_attribute_error() -> None:
    import infer_align

    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(infer_align, "no_such_" + "name")


def test_torch_side_does_not_load_jax_nor_the_reverse() -> None:
    print_ = "print([m for m in {!r} if m in sys.modules])"
    assert fresh("import sys, infer_align.torch; " + print_.format(("jax", "numpyro"))) == "[]"
    assert fresh("import sys, infer_align.jax; " + print_.format(("torch", "pyro"))) == "[]"


def test_what_exact_advertises_is_there() -> None:
    """Each submodule that its docstring names, without an import of its own."""
    code = (
        "import re, infer_align as ia\n"
        "named = re.findall(r'`infer_align\\.exact\\.(\\w+)`', ia.exact.__doc__)\n"
        "assert all(hasattr(ia.exact, name) for name in named), named\n"
        "print(len(named))"
    )
    assert fresh(code) == "8"
