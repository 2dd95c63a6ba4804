"""`infer-align fit`: a policy for a declared target, in a run folder."""

import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

import typer

from infer_align.cli import options as o
from infer_align.cli.console import say
from infer_align.cli.errors import Stop, reported
from infer_align.cli.loader import CALL, split
from infer_align.cli.locks import held
from infer_align.cli.runs import RunFolder, begun, check_run_dir, check_target, digest
from infer_align.cli.settings import SCHEDULES, Settings, versions

if TYPE_CHECKING:
    from infer_align.cli.job import Job

MAY_CHANGE = ("steps", "device", "n_assess", "assess_prompts")
"""Settings that a resumed run may give anew; the rest would make it another run."""


@reported
@no_type_check  # what Typer passes is not the typer.Context that it asks to be told
def fit(
    ctx: typer.Context,
    target: o.Target = None,
    *,
    model: o.Model = None,
    prompts: o.Prompts = None,
    max_new_tokens: o.MaxNewTokens = None,
    device: o.Device = "cpu",
    dtype: o.Dtype = None,
    lora: o.Lora = None,
    full: o.Full = False,
    estimator: o.EstimatorName = "f_dpg",
    divergence: o.Divergence = None,
    baseline: o.Baseline = None,
    log_z: o.LogZ = None,
    truncate: o.Truncate = None,
    clip: o.Clip = None,
    n: o.N = 64,
    steps: o.Steps = 100,
    prompts_per_step: o.PromptsPerStep = None,
    learning_rate: o.LearningRate = 2e-4,
    schedule: o.Schedule = "constant",
    max_grad_norm: o.MaxGradNorm = 1.0,
    token_budget: o.TokenBudget = None,
    reuse: o.Reuse = 1,
    seed: o.Seed = 0,
    run_dir: o.RunDir = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    trust_target: o.TrustTarget = False,
    checkpoint_every: o.CheckpointEvery = 10,
    n_assess: o.NAssess = 512,
    assess_prompts: o.AssessPrompts = 8,
    threads: o.Threads = None,
) -> None:
    """Fit a language model to the target that TARGET.py declares.

    TARGET.py has a function `target(lm)` that takes the language model and returns a Pyro program:

    ```python
    def target(lm):
        def program(prompts):
            y = pyro.sample("y", lm(prompts))
            pyro.factor("reward", score(reward, y, lm, prompts) / 0.25)
        return program
    ```

    The prior and the fitted policy are assessed on fresh draws; the run folder gets config.json,
    metrics.jsonl, checkpoints, the policy (safetensors), ArviZ trees (.nc) and report.html.
    """
    if lora is not None and full:
        raise Stop("--lora and --full exclude each other: give one")
    chosen = Settings(
        target="", model=_absolute(model), prompts=_absolute(prompts),
        max_new_tokens=max_new_tokens, device=device, dtype=dtype,
        lora=None if full else lora or 16, divergence=divergence, estimator=estimator,
        baseline=baseline, log_z=log_z, truncate=truncate, clip=clip, n=n, steps=steps,
        prompts_per_step=prompts_per_step, learning_rate=learning_rate, schedule=schedule,
        max_grad_norm=None if math.isinf(max_grad_norm) else max_grad_norm,
        token_budget=token_budget, reuse=reuse, seed=seed, n_assess=n_assess,
        assess_prompts=assess_prompts,
    )  # fmt: skip
    check(chosen)
    how = How(checkpoint_every, threads)
    if not resume:
        start(_begun(target, chosen), run_dir, how, overwrite=overwrite)
        return
    if run_dir is None or overwrite:
        raise Stop("--resume needs --run-dir, the folder of the run, and no --overwrite")
    folder = RunFolder(run_dir)
    config = folder.read_config(trust=trust_target)
    settings = _resumed(ctx, target, chosen, Settings.from_config(config["settings"]))
    named = target is not None  # who names the file means it
    check_target(config, Path(settings.target), trust=trust_target or named)
    go_on(settings, folder, config, how)


class How(NamedTuple):
    """What no setting of the run says."""

    checkpoint_every: int
    threads: int | None
    title: str | None = None
    """Of the report; default: the fit of the target."""
    exam: bool = False
    """Say PASS or FAIL."""


def start(settings: Settings, run_dir: Path | None, how: How, *, overwrite: bool) -> Any:
    """Load everything, begin the folder, and run."""
    from infer_align.cli.pipeline import run

    check_run_dir(run_dir, overwrite=overwrite)
    job, config = _prepared(settings, how)
    with begun(run_dir, Path(settings.target).stem, overwrite=overwrite) as (folder, lock):
        folder.write_config(config)
        _announce(job, config, folder)
        return run(job, folder, lock, None, how)


def go_on(settings: Settings, folder: RunFolder, config: dict[str, Any], how: How) -> Any:
    """The same from the folder's last checkpoint."""
    from infer_align.cli.pipeline import run
    from infer_align.torch.checkpoints import complete

    with held(folder.path) as lock:
        try:
            checkpoint = complete(folder.checkpoint)
        except FileNotFoundError as error:
            raise Stop(
                f"{folder.path} has no complete checkpoint to resume from; start again with "
                "--overwrite in place of --resume"
            ) from error
        job, fresh = _prepared(settings, how)
        if config["prompts_sha256"] != fresh["prompts_sha256"]:
            raise Stop("the prompts file has changed since the run began: start another run")
        changed = {"settings": fresh["settings"]}
        if config["target_sha256"] != fresh["target_sha256"]:
            earlier = [*config.get("earlier_target_sha256", []), config["target_sha256"]]
            changed["target_sha256"] = fresh["target_sha256"]
            changed["earlier_target_sha256"] = earlier
        folder.sweep()
        folder.drop_policy()
        folder.write_config(config | changed)
        _announce(job, config, folder)
        return run(job, folder, lock, checkpoint, how)


def _prepared(settings: Settings, how: How) -> "tuple[Job, dict[str, Any]]":
    """Everything loaded and checked, and the config of a run of it."""
    from infer_align.cli.job import prepare, set_up

    count = set_up(how.threads)
    say(
        f"loading {Path(settings.target).stem}"
        + (f" on {settings.model}" if settings.model else "")
    )
    path = Path(settings.target)
    before = digest(path if path.is_file() else None)  # as it is run, not as it is afterwards
    job = prepare(settings)
    return job, {
        "settings": settings.record(),
        "estimator": job.estimator.name,
        "versions": versions(),
        "threads": count,
        "created": datetime.now().isoformat(timespec="seconds", sep=" "),
        "target_sha256": before,
        "prompts_sha256": digest(Path(settings.prompts) if settings.prompts else None),
    }


def _announce(job: "Job", config: dict[str, Any], folder: RunFolder) -> None:
    prompts = "no prompt" if job.prompts is None else f"{len(job.prompts)} prompt(s)"
    say(f"{job.estimator.name}, {prompts}, {config['threads']} thread(s)")
    say(f"run folder: {folder.path}")


def check(s: Settings) -> None:
    """Values that only the command line can refuse before anything is loaded."""
    if not (s.learning_rate > 0 and math.isfinite(s.learning_rate)):
        raise Stop(f"--learning-rate must be positive and finite, got {s.learning_rate}")
    if s.max_grad_norm is not None and not s.max_grad_norm > 0:
        raise Stop(f"--max-grad-norm must be positive (inf for no clipping), got {s.max_grad_norm}")
    if s.schedule not in SCHEDULES:
        raise Stop(f"--schedule {s.schedule!r} is not known; take one of {', '.join(SCHEDULES)}")
    if s.n_assess == 1:
        raise Stop("--n-assess 1 gives no standard error; take at least 2, better 512, or 0")


def _begun(target: str | None, chosen: Settings) -> Settings:
    """The settings of a new run."""
    if target is None:
        raise Stop(f"fit what? Give {CALL}")
    path, name = split(target)
    return replace(chosen, target=str(path.resolve()), name=name)


def _resumed(ctx: Any, target: str | None, chosen: Settings, old: Settings) -> Settings:
    """The settings of the run that goes on, with what may be given anew."""
    if target is not None:
        path, name = split(target)
        chosen = replace(chosen, target=str(path.resolve()), name=name)
    given = {k for k in vars(old) if _is_given(ctx, k)}
    given |= {"lora"} if _is_given(ctx, "full") else set()
    given |= set() if target is None else {"target", "name"}
    changed = [k for k in given if getattr(old, k) != getattr(chosen, k)]
    if refused := [k for k in sorted(changed) if k not in MAY_CHANGE]:
        texts = ", ".join(f"{k} was {getattr(old, k)!r}" for k in refused)
        raise Stop(
            f"a resumed run keeps its settings ({texts}); leave these out, or start another run in "
            "another --run-dir"
        )
    return replace(old, **{k: getattr(chosen, k) for k in changed})


def _is_given(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _absolute(path: str | Path | None) -> str | None:
    """What exists as an absolute path, so that the run can be loaded from any folder."""
    if path is None or not Path(path).expanduser().exists():
        return None if path is None else str(path)  # a hub id, or a path that is refused later
    return str(Path(path).expanduser().resolve())
