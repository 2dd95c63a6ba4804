"""TARGET.py files: the user's and the catalogue's, read statically or loaded by their path.

A file declares ``def target(lm)``, which takes the language model and returns a Pyro program (or
a `Target`). Optional names beside it: ``FEATURES`` (lm -> name -> feature), ``PROMPTS``,
``MAX_NEW_TOKENS``, ``BETA``, ``REFERENCE`` (a dict of numbers) and ``model`` (makes the language
model). A NumPyro file has a ``target`` without arguments.
"""

import ast
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import infer_align
from infer_align.cli.errors import Stop, explain, extra_of, install_line

LONGEST = 10**9
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

    def call(self, name: str, *arguments: Any) -> Any:
        """What one of the file's optional functions returns.

        Raises
        ------
        Stop
            If it is no function of these arguments.
        """
        function = self.option(name)
        check_call(function, f"{self.path}:{name}", arguments)
        return function(*arguments)

    @property
    def beta(self) -> float | None:
        """``BETA``: the temperature, a positive number, or None."""
        beta = self.option("BETA")
        if beta is None:
            return None
        if isinstance(beta, bool) or not isinstance(beta, Real):
            raise Stop(f"BETA in {self.path} is {beta!r}; it must be a number, as BETA = 0.25")
        value = float(beta)
        if not 0 < value < math.inf:
            raise Stop(f"BETA in {self.path} is {beta}; a temperature is positive and finite")
        return value

    @property
    def max_new_tokens(self) -> int | None:
        """``MAX_NEW_TOKENS``: a whole number from 1 on, or None."""
        length = self.option("MAX_NEW_TOKENS")
        if length is not None and not (isinstance(length, int) and 1 <= length <= LONGEST):
            raise Stop(
                f"MAX_NEW_TOKENS in {self.path} is {length!r}; it must be a whole number from 1 to "
                f"{LONGEST}"
            )
        return length


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
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise Stop(f"REFERENCE in {path} must be a dict of plain numbers and texts") from error


def split(target: str) -> tuple[Path, str]:
    """``TARGET.py[:name]`` as a path and a name."""
    head, colon, name = target.rpartition(":")
    if colon and head.endswith(".py"):
        return expanded(head), name
    return expanded(target), "target"


def expanded(path: str | Path) -> Path:
    """A path whose ``~`` is the home folder, which shells leave in ``--option=~/x``.

    Raises
    ------
    Stop
        If nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = str(path).partition("/")[0]
        raise Stop(f"{str(path)!r}: there is no user {user[1:]!r} with a home folder") from None


def check_call(function: Any, where: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what cannot be called with these arguments, before it is.

    Raises
    ------
    Stop
        With what it takes and what it is given.
    """
    needed = {0: "no argument", 1: "one argument, the language model"}[len(arguments)]
    if not callable(function):
        raise Stop(f"{where} is {type(function).__name__}; it must be a function of {needed}")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a function of C code has none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise Stop(f"{where} takes {signature}; it is called with {needed}") from None


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
    check_call(loaded.make, f"{path}:{name}", ("lm",))
    _ = loaded.beta  # a report, at the end of a fit, is late to find that it is none
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
    if make is None:
        functions = ", ".join(sheet.functions) or "none"
        raise Stop(f"{path} has no callable {name!r} (its functions: {functions}): give {CALL}")
    if not callable(make):
        raise Stop(f"{path}:{name} is {type(make).__name__}; it must be a function: give {CALL}")
    return Loaded(path.resolve(), make, module)


def check_program(program: Any, where: str) -> None:
    """Refuse what a target function returns, unless it is a program or a `Target`."""
    from infer_align.targets import Target

    if inspect.iscoroutine(program):
        program.close()
        raise Stop(f"{where} is an async function: write def, without async")
    if not (callable(program) or isinstance(program, Target)) or inspect.isclass(program):
        raise Stop(
            f"{where} returned a {type(program).__name__}; it must return a program (a function) "
            "or a Target"
        )


def numpyro_program(loaded: Loaded) -> Any:
    """The NumPyro target of a file: what its function returns, or the function if it draws."""
    from numpyro import handlers

    with handlers.block(), handlers.seed(rng_seed=0), handlers.trace() as sites:
        made = loaded.make()
    return loaded.make if sites else made


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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: a target file does not end the program
        raise Stop(f"{path} cannot be loaded: {explain(error)}") from error
    return module
