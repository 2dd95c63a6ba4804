"""TARGET.py files: the user's and the catalogue's, read statically or loaded by their path.

A file declares ``def target(lm)``, which takes the language model and returns a Pyro program (or
a `Target`). Optional names beside it: ``FEATURES`` (lm -> name -> feature), ``PROMPTS``,
``MAX_NEW_TOKENS``, ``BETA``, ``REFERENCE`` (a dict of numbers) and ``model`` (makes the language
model). A NumPyro file has a ``target`` without arguments.
"""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import infer_align
from infer_align.cli.errors import Stop, explain, extra_of, install_line

CALL = "TARGET.py[:name], with def target(lm): ... returning a Pyro program"


@dataclass(frozen=True)
class Sheet:
    """What a target file says without being run."""

    path: Path
    doc: str
    reference: dict[str, Any]
    functions: dict[str, int]
    """Its functions and how many arguments each takes."""

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        return self.path.stem

    @property
    def headline(self) -> str:
        """First line of its docstring."""
        return self.doc.strip().partition("\n")[0]

    def is_numpyro(self, name: str = "target") -> bool:
        """Whether it declares a program without a language model."""
        return self.functions.get(name, 1) == 0


@dataclass(frozen=True)
class Loaded:
    """A target file that was run."""

    path: Path
    make: Callable[..., Any]
    module: ModuleType

    def option(self, name: str, default: Any = None) -> Any:
        """An optional module-level name."""
        return vars(self.module).get(name, default)


def catalogue_folder() -> Path:
    """The catalogue: `infer_align/_models` in a wheel, `models/` in a checkout."""
    package = Path(infer_align.__file__).resolve().parent
    packed, checkout = package / "_models", package.parent
    if packed.is_dir():
        return packed
    if (checkout / "models").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "models"
    raise Stop(
        f"this installation has no catalogue: neither {packed} nor {checkout / 'models'} exists; "
        "install infer_align from a wheel, or run in a checkout"
    )


def catalogue() -> dict[str, Sheet]:
    """The catalogue's files by name, read without importing them."""
    files = sorted(catalogue_folder().glob("[!_]*.py"))
    return {path.stem: read(path) for path in files}


def entry(name: str) -> Sheet:
    """One entry of the catalogue."""
    sheets = catalogue()
    if name not in sheets:
        raise Stop(f"the catalogue has no {name!r}; it has {', '.join(sheets)}")
    return sheets[name]


def read(path: Path) -> Sheet:
    """Docstring, reference numbers and functions of a target file, from its syntax tree."""
    try:
        # Bytes: a byte order mark and an encoding cookie are read as Python reads them.
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise Stop(f"{path} cannot be read ({error.strerror}): give {CALL}") from error
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise Stop(f"{path}{line}: {error.msg}") from error
    except (RecursionError, MemoryError, ValueError) as error:  # too deep, or a null byte
        raise Stop(
            f"{path} is no Python that can be read: {error or 'nested too deeply'}"
        ) from error
    functions, reference = {}, {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            a = node.args
            functions[node.name] = len(a.posonlyargs) + len(a.args) + (a.vararg is not None)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if any(isinstance(t, ast.Name) and t.id == "REFERENCE" for t in targets):
            reference = _literal(node.value, path)  # type: ignore[attr-defined]
    return Sheet(path, ast.get_docstring(tree) or "", reference, functions)


def _literal(node: ast.expr, path: Path) -> dict[str, Any]:
    try:
        return dict(ast.literal_eval(node))
    except (ValueError, TypeError) as error:
        raise Stop(f"REFERENCE in {path} must be a dict of plain numbers and texts") from error


def split(target: str) -> tuple[Path, str]:
    """``TARGET.py[:name]`` as a path and a name."""
    head, colon, name = target.rpartition(":")
    if colon and head.endswith(".py"):
        return Path(head).expanduser(), name
    return Path(target).expanduser(), "target"


def load(path: Path, name: str = "target") -> Loaded:
    """Run a target file and find its target of a language model.

    Raises
    ------
    Stop
        If there is no such file or name, if it is a NumPyro target, or if running it fails.
    """
    if find(path).is_numpyro(name):
        raise Stop(
            f"{path}:{name} takes no language model, so it is a NumPyro target; fit it in Python "
            "with infer_align.jax.fit (see docs/api/jax.md), or write def target(lm): ... with a "
            "Pyro program for this command"
        )
    loaded = load_any(path, name)
    make = loaded.make
    if not any(p.kind is not p.KEYWORD_ONLY for p in inspect.signature(make).parameters.values()):
        raise Stop(f"{path}:{name} takes no language model: write def {name}(lm): ...")
    return loaded


def find(path: Path) -> Sheet:
    """What a target file says without being run; `Stop` if it is not there or no Python."""
    if not path.is_file():
        known = [p for p in _names() if p == path.stem]
        hint = f"; the catalogue's is {catalogue_folder() / known[0]}.py" if known else ""
        raise Stop(f"no file {path}: give {CALL}{hint}")
    if path.suffix != ".py":
        raise Stop(f"{path} is not a Python file: give {CALL}")
    return read(path)


def load_any(path: Path, name: str = "target") -> Loaded:
    """Run a target file and find its target, of a language model or of NumPyro."""
    sheet = find(path)
    module = _run(path.resolve())
    make = vars(module).get(name)
    if not callable(make):
        functions = ", ".join(sheet.functions) or "none"
        raise Stop(f"{path} has no callable {name!r} (its functions: {functions}): give {CALL}")
    return Loaded(path.resolve(), make, module)


def _names() -> Sequence[str]:
    try:
        return [path.stem for path in catalogue_folder().glob("[!_]*.py")]
    except Stop:
        return []


def _run(path: Path) -> ModuleType:
    # One module name a path: two files of one stem must not meet.
    name = f"infer_align_target_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up here
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)  # last: helpers beside the file are found, nothing is shadowed
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        extra = extra_of(error.name)
        line = install_line(extra) if extra else f"pip install the package of {error.name}"
        raise Stop(f"{path} needs {error.name}, which is not installed: {line}") from error
    except Exception as error:
        raise Stop(f"{path} cannot be loaded: {explain(error)}") from error
    return module
