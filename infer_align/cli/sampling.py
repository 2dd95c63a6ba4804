"""`infer-align sample`: continuations of a fitted run, or weighted samples of a target."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from infer_align.cli import methods
from infer_align.cli import options as o
from infer_align.cli.console import delivered, notice, others_aside, record
from infer_align.cli.errors import Stop, evaluating, reported
from infer_align.cli.escapes import printable
from infer_align.cli.loader import check_call, check_program, find, load_any, numpyro_program, split
from infer_align.cli.runs import RunFolder
from infer_align.cli.settings import Settings
from infer_align.cli.using import LoadedRun, Prompts, Seed, load_run

if TYPE_CHECKING:
    from infer_align.cli.job import Job
    from infer_align.samplers import Source
    from infer_align.targets import WeightedSample

PANEL = "How it is sampled (--method)"
MODEL = "The target, of a TARGET.py"
NO_LM = " is a NumPyro target: leave out --model, --prompts, --max-new-tokens, --dtype and --device"
OWN_LM = "--model, --max-new-tokens and --dtype are the run's own: leave them out"

What = Annotated[
    str,
    typer.Argument(
        metavar="RUN|TARGET.py[:name]", help="Run folder of fit or demo, or a target file."
    ),
]
Method = Annotated[
    str | None,
    o.opt(f"{', '.join(methods.READS)}. A run without one prints its own draws.", panel=PANEL),
]
LogBound = Annotated[
    float | None,
    o.real("rejection: log of the largest P/proposal. Default 0, as of a condition.", panel=PANEL),
]
LogBeta = Annotated[float | None, o.real("quasi-rejection: log β, the cut weight.", panel=PANEL)]
AcceptanceRate = Annotated[
    float | None,
    o.real(
        "quasi-rejection: instead of --log-beta, chosen by a pilot.",
        panel=PANEL,
        above=0.0,
        high=1.0,
    ),
]
MaxCalls = Annotated[
    int | None, o.opt("Most proposals per prompt of the rejections.", panel=PANEL, low=1)
]
Proposals = Annotated[
    int | None, o.opt("resampling: proposals per prompt. Default: 10·n.", panel=PANEL, low=1)
]
Smooth = Annotated[bool, o.opt("resampling: Pareto-smoothed weights.", "--smooth", panel=PANEL)]
Steps = Annotated[
    int | None, o.opt("Metropolis: moves of each chain. Default: 100.", panel=PANEL, low=1)
]
EssThreshold = Annotated[
    float | None,
    o.real("smc: resample below this share of n. Default: 0.5.", panel=PANEL, low=0.0, high=1.0),
]


@reported
def sample(
    what: What,
    *,
    n: Annotated[int, o.opt("Outcomes per prompt.", "--n", "-n", low=1)] = 5,
    method: Method = None,
    prompts: Prompts = None,
    seed: Seed = 0,
    model: Annotated[str | None, o.opt("Folder, .gguf file or hub id.", panel=MODEL)] = None,
    max_new_tokens: Annotated[int | None, o.opt("As for fit.", panel=MODEL, low=1)] = None,
    dtype: Annotated[str | None, o.opt("As for fit.", panel=MODEL)] = None,
    log_bound: LogBound = None,
    log_beta: LogBeta = None,
    acceptance_rate: AcceptanceRate = None,
    max_calls: MaxCalls = None,
    proposals: Proposals = None,
    smooth: Smooth = False,
    steps: Steps = None,
    ess_threshold: EssThreshold = None,
    trust_target: o.TrustTarget = False,
    device: Annotated[str | None, o.opt("Default: the run's, or cpu.")] = None,
    threads: o.Threads = None,
) -> None:
    """Sample a target, or a fitted run, as JSON lines.

    RUN alone prints draws of the fitted policy: prompt, completion, completion_ids (its EOS
    included) and log_prob in nats. With --method the outcomes are weighted ones of the target,
    proposed by the prior (TARGET.py) or by the fitted policy (RUN): log_weight, log_target,
    log_proposal, and probability, the weight's share among those of its prompt. What log Z is, and
    what the weights are worth, is said on standard error at the end.
    """
    choices = methods.Choices(
        log_bound, log_beta, acceptance_rate, max_calls, proposals, smooth, steps, ess_threshold
    )
    path, name = split(what)
    a_file = path.is_file() or path.suffix == ".py"
    read = lambda: load_run(RunFolder(path), prompts, device, threads, trust=trust_target)
    if method is None:
        _check_plain(choices, a_file=a_file)
        with others_aside():
            loaded = read()
        _print_draws(loaded, n, seed)
        return
    methods.check(method, choices)
    with others_aside():
        if a_file and find(path).is_numpyro(name):
            _none_of((model, max_new_tokens, dtype, prompts, device), path.name + NO_LM)
            source, twist, job = *_numpyro(path, name, seed), None
        elif a_file:
            settings = Settings(
                target=str(path.resolve()), name=name, model=model, max_new_tokens=max_new_tokens,
                dtype=dtype, device=device or "cpu", seed=seed,
            )  # fmt: skip
            source, twist, job = _of_language_model(settings, prompts, threads)
        else:
            _none_of((model, max_new_tokens, dtype), OWN_LM)
            source, twist, job = _of_run(read(), seed)
        if method == "smc" and twist is None:
            notice("no twist in the target's file: smc without one is importance sampling")
        methods.check_sizes(method, n, choices, job)
        with evaluating(str(path)):
            drawn = methods.draw(method, source, n, choices, twist)
    for line in _lines(drawn, source, job):
        record(line)
    delivered()
    _summarise(drawn, job)


def _none_of(given: tuple[Any, ...], why: str) -> None:
    """Refuse options that are not read."""
    if any(x is not None for x in given):
        raise Stop(why)


def _check_plain(choices: methods.Choices, *, a_file: bool) -> None:
    if a_file:
        raise Stop(f"how is it sampled? Give --method: {', '.join(methods.READS)}")
    if given := choices.given():
        raise Stop(f"--{given[0].replace('_', '-')} needs a --method; leave it out, or give one")


def _print_draws(loaded: LoadedRun, n: int, seed: int) -> None:
    """Draws of the fitted policy, unweighted."""
    import torch

    job, policy, _ = loaded
    job.check_size("--n", n)
    generator = torch.Generator().manual_seed(seed)
    texts = job.prompts or [None]
    y, log_prob = policy(texts).sample_with_log_prob((n,), generator=generator)
    for k, prompt in enumerate(texts):
        for i in range(n):
            line = {
                "prompt": prompt,
                **_completion(job, y[i, k]),
                "log_prob": float(log_prob[i, k]),
            }
            record(line)
    delivered()


def _completion(job: "Job", ids: Any) -> dict[str, Any]:
    """An outcome as text and as token ids, its EOS included."""
    return {
        "completion": None if job.lm.tokenizer is None else job.lm.decode(ids),
        "completion_ids": ids[: int(job.lm.lengths(ids))].tolist(),
    }


def _numpyro(path: Path, name: str, seed: int) -> "tuple[Source, Any]":
    import jax

    jax.config.update("jax_enable_x64", True)  # noqa: FBT003 (this process is ours)
    from infer_align.jax import source

    loaded = load_any(path, name)
    check_call(loaded.make, f"{path}:{name}", ())
    twist = None if loaded.option("twist") is None else loaded.call("twist")
    program = numpyro_program(loaded)
    check_program(program, f"{path}:{name}")
    if callable(program):  # no Target: a program, which is sampled without contexts
        check_call(program, f"the program of {path}:{name}", ())
    return source(jax.random.key(seed), program), twist


def _of_language_model(
    settings: Settings, prompts: Path | None, threads: int | None
) -> "tuple[Source, Any, Job]":
    from infer_align.cli.job import prepare, set_up
    from infer_align.torch import source

    set_up(threads)
    job = prepare(settings, prompts=prompts)
    return source(job.program, None, job.prompts, job.columns, settings.seed), _twist(job), job


def _of_run(loaded: LoadedRun, seed: int) -> "tuple[Source, Any, Job]":
    from infer_align.torch import source

    job, policy, _ = loaded
    return source(job.program, policy, job.prompts, job.columns, seed), _twist(job), job


def _twist(job: "Job") -> Any:
    return None if job.file.option("twist") is None else job.file.call("twist", job.lm)


def _lines(
    drawn: "WeightedSample", source: "Source", job: "Job | None"
) -> Iterator[dict[str, Any]]:
    """A record an outcome, prompt by prompt."""
    numbers = {
        "log_weight": drawn.log_weights,
        "log_target": drawn.log_target,
        "log_proposal": source.log_proposal(drawn.outcomes),
        "probability": drawn.probabilities,
    }
    flat = {name: np.asarray(x).reshape(len(x), -1) for name, x in numbers.items()}
    n, contexts = flat["log_weight"].shape
    outcomes = drawn.outcomes if job is not None else _host(drawn.outcomes)
    texts = [None] * contexts if job is None or job.prompts is None else job.prompts
    for k in range(contexts):
        for i in range(n):
            values = {name: float(x[i, k]) for name, x in flat.items()}
            yield {
                "prompt": texts[k],
                **_outcome(outcomes, len(source.shape), i, k, job),
                **values,
            }


def _host(outcomes: Any) -> Any:
    """NumPy arrays in place of JAX's, of which an entry is slow to take."""
    if isinstance(outcomes, dict):
        return {site: np.asarray(x) for site, x in outcomes.items()}
    return np.asarray(outcomes)


def _outcome(outcomes: Any, context_axes: int, i: int, k: int, job: "Job | None") -> dict[str, Any]:
    """One outcome: a continuation, or whatever a program draws."""
    pick = lambda x: x.reshape(x.shape[0], -1, *x.shape[1 + context_axes :])[i, k]
    if isinstance(outcomes, dict):
        return {"outcome": {site: np.asarray(pick(x)).tolist() for site, x in outcomes.items()}}
    one = pick(outcomes)
    if job is not None and tuple(one.shape) == (job.lm.max_new_tokens,):
        return _completion(job, one)
    return {"outcome": np.asarray(one).tolist()}


def _summarise(drawn: "WeightedSample", job: "Job | None") -> None:
    """What the sample says of log Z, and what it is worth, on standard error."""
    from infer_align import diagnostics

    labels = None if job is None else job.labels
    tree = diagnostics.assess_sample(drawn, contexts=labels)
    data = tree["diagnostics"].to_dataset()
    n, contexts = data.attrs["n"], tree["diagnostics/contexts"].sizes["context"]
    each = "" if contexts == 1 else f" for each of {contexts} prompts (log Z: their mean)"
    ess = float(data["ess"])
    lines = [
        f"{drawn.method}",
        f"{n} outcomes{each}, at the cost of {drawn.calls} outcomes drawn or scored"
        + ("" if contexts == 1 else " per prompt"),
        f"log Z         {_interval(diagnostics.estimates(tree)['log_z'])}",
        f"ESS           {ess:.1f} of {n * contexts} ({ess / (n * contexts):.0%})",
        f"Pareto k-hat  {float(data['pareto_khat']):.2f}",
    ]
    for text in lines:
        typer.echo(printable(text), err=True)
    for note in filter(None, data.attrs["notes"].split("\n")):
        notice(note)


def _interval(e: Any) -> str:
    if math.isnan(e.value):
        return "not estimated by this method"
    mark = "" if e.reliable else ", not claimed to cover"
    return f"{e.value:z.4f} [{e.low:z.4f}, {e.high:z.4f}]{mark}"
