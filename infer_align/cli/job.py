"""From settings to objects: the model, the target on it, its prompts and its estimator.

Everything that a user can get wrong is found here, before a step is taken or a folder touched.
Imports torch when called.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_align.cli import data
from infer_align.cli.console import notice
from infer_align.cli.errors import DEBUG, Stop, explain
from infer_align.cli.escapes import printable
from infer_align.cli.loader import Loaded, check_program, load
from infer_align.cli.settings import Settings, make_divergence, make_estimator
from infer_align.cli.sizes import check_size

if TYPE_CHECKING:
    import torch

    from infer_align.estimators import Estimator
    from infer_align.torch import CausalLM

DTYPES = ("float32", "float64", "bfloat16")


@dataclass(frozen=True)
class Job:
    """What a fit or an assessment works on."""

    settings: Settings
    file: Loaded
    lm: "CausalLM"
    program: Any
    features: Mapping[str, Callable[..., Any]]
    prompts: list[Any] | None
    columns: dict[str, list[Any]]
    estimator: "Estimator"

    @property
    def labels(self) -> list[str]:
        """The prompts in words, without the characters that no file of an assessment takes."""
        if self.prompts is None:
            return [data.NO_PROMPT]
        return [printable(data.label(p)) for p in self.prompts]

    @property
    def beta(self) -> float | None:
        """The temperature, where the file states one."""
        return self.file.beta

    def check_size(self, flag: str, n: int, most_prompts: int | None = None) -> None:
        """Refuse more outcomes per prompt than fit into the memory."""
        count = len(self.labels)
        check_size(flag, n, min(count, most_prompts or count), self.lm.max_new_tokens)

    def first(self, count: int) -> "Job":
        """The same on the first prompts only."""
        if self.prompts is None or len(self.prompts) <= count:
            return self
        columns = {name: values[:count] for name, values in self.columns.items()}
        return replace(self, prompts=self.prompts[:count], columns=columns)


def set_up(threads: int | None) -> int:
    """Torch's threads: as asked, else as ``OMP_NUM_THREADS`` says, else 2 where there are 2 cores.

    Waiting threads sleep instead of spinning: spinning ones cost up to ten times on a busy
    machine, sleeping ones cost little and nearly halve a step on a quiet one. The loaders'
    progress bars, which would stand between our lines, are switched off.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()

    if threads is not None or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(threads or min(2, os.cpu_count() or 1))
    return torch.get_num_threads()


def prepare(settings: Settings, *, prompts: Path | None = None) -> Job:
    """Load and check everything that the settings name.

    Parameters
    ----------
    settings : Settings
    prompts : pathlib.Path, optional
        Other prompts than those of the settings.

    Raises
    ------
    Stop, ValueError, FileNotFoundError
        With what to do.
    """
    _check_names(settings)
    path = Path(settings.prompts) if prompts is None and settings.prompts else prompts
    given = None if path is None else data.read_prompts(path)
    file = load(Path(settings.target), settings.name)
    if given is None:
        given = data.check_prompts(file.option("PROMPTS"), file.path), {}
    texts, columns = given
    estimator = make_estimator(settings, len(texts or [None]))
    lm = _language_model(settings, file)
    if texts is not None:
        lm.encode_prompts(texts)  # a prompt that does not fit is an error now, not at step 40
    program = file.make(lm)
    check_program(program, f"{file.path}:{settings.name}")
    columns = _columns(program, columns, path)
    features = _features(file, lm)
    job = Job(settings, file, lm, program, features, texts, columns, estimator)
    _check_binding(job)
    job.check_size("--n", settings.n, settings.prompts_per_step)
    job.check_size("--n-assess", settings.n_assess, settings.assess_prompts)
    _try(job.first(1))
    return job


def _check_names(s: Settings) -> None:
    """Names, before anything slow is loaded."""
    if s.divergence is not None:
        make_divergence(s.divergence)
    if s.dtype is not None and s.dtype not in DTYPES:
        raise Stop(f"--dtype {s.dtype!r} is not known; take one of {', '.join(DTYPES)}")


def _language_model(s: Settings, file: Loaded) -> "CausalLM":
    from infer_align.torch import CausalLM

    if s.model is None:
        lm: Any = own_model(file)
        if lm is None:
            raise Stop(
                f"which language model? {file.path.name} brings none: give --model a folder, a "
                ".gguf file or a hub id"
            )
        if refused := [f for f in ("dtype", "token_budget") if getattr(s, f) is not None]:
            flags = ", ".join("--" + f.replace("_", "-") for f in refused)
            raise Stop(f"{file.path.name} makes its own model: {flags} needs --model")
        if s.max_new_tokens is not None:
            lm.max_new_tokens = s.max_new_tokens
        lm.module.to(_device(s.device))
        return lm
    length = s.max_new_tokens or file.max_new_tokens
    if length is None:
        raise Stop(
            "how long are the continuations? Give --max-new-tokens, or write MAX_NEW_TOKENS = ... "
            f"in {file.path.name}"
        )
    import torch

    if s.dtype == "bfloat16":
        notice(
            "bfloat16 sampling and scoring disagree by up to 0.7 nats a sequence, which is noise "
            "in the weights; the difference is reported"
        )
    options: dict[str, Any] = {} if s.token_budget is None else {"token_budget": s.token_budget}
    return CausalLM.from_pretrained(
        s.model,
        max_new_tokens=length,
        dtype=getattr(torch, s.dtype or "float32"),
        device=_device(s.device),
        **options,
    )


def own_model(file: Loaded) -> "CausalLM | None":
    """What the file's ``model()`` makes, or None without one."""
    from infer_align.torch import CausalLM

    if file.option("model") is None:
        return None
    lm = file.call("model")
    if not isinstance(lm, CausalLM):
        raise Stop(f"{file.path}:model returned {type(lm).__name__}; it must return a CausalLM")
    return lm


def _features(file: Loaded, lm: "CausalLM") -> Mapping[str, Callable[..., Any]]:
    if file.option("features") is None:
        return {}
    features = file.call("features", lm)
    if not isinstance(features, Mapping):
        raise Stop(
            f"{file.path}:features returned {type(features).__name__}; it must return a dict of "
            "functions by name"
        )
    for name, feature in features.items():
        if not (isinstance(name, str) and name and callable(feature)):
            raise Stop(
                f"{file.path}:features has {name!r}: {type(feature).__name__}; a name is a text, "
                "and a feature a function of the outcomes and the contexts"
            )
    return {printable(name): feature for name, feature in features.items()}


def _device(name: str) -> "torch.device":
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Stop(f"--device {name!r} is not known; take cpu, cuda or cuda:0") from error
    try:
        torch.ones(1, device=device).tolist()  # a `meta` tensor is made, and has no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).split(". ")[0].splitlines() or ["it does not say why"]
        raise Stop(
            f"--device {name}: this torch computes nothing there ({type(error).__name__}: "
            f"{why[0]}); take --device cpu"
        ) from error
    return device


def _columns(
    program: Any, columns: dict[str, list[Any]], path: Path | None
) -> dict[str, list[Any]]:
    """The columns that the program reads; the others are named in a notice."""
    from infer_align.targets import Target
    from infer_align.torch.pyro import context_names

    wanted = [] if isinstance(program, Target) else context_names(program)[1:]
    if unused := [name for name in columns if name not in wanted]:
        notice(
            f"columns of {path} that the program does not read: {', '.join(unused)} (it reads "
            f"{', '.join(wanted) or 'the prompts only'})"
        )
    return {name: values for name, values in columns.items() if name in wanted}


def _check_binding(job: Job) -> None:
    from infer_align.torch.contexts import bind

    count = 1 if job.prompts is None else len(job.prompts)
    bind(job.program, job.prompts, job.columns)
    per_step = job.settings.prompts_per_step
    if per_step is not None and not 1 <= per_step <= count:
        raise Stop(
            f"--prompts-per-step must lie in 1 to {count}, the number of prompts, got {per_step}"
        )


def _try(job: Job) -> None:
    """Two draws through the whole target: a reward that cannot work is found now."""
    from infer_align.torch import collect

    try:
        collect(
            job.lm, job.program, job.prompts, job.columns, n=2, features=job.features, seed=1
        ).assess()
    except Exception as error:
        if DEBUG.get():
            raise
        raise Stop(f"the target cannot be evaluated: {explain(error)}") from error
