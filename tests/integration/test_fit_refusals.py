"""What `fit` and `collect` refuse, compare at a resume, copy, and keep apart between threads."""

import math
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jaxtyping
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from infer_align import Target, divergences, estimators, indicator
from infer_align.torch import (
    CausalLM,
    Step,
    TokenProduct,
    collect,
    fit,
    load_checkpoint,
    save_checkpoint,
)
from infer_align.torch.contexts import check_target
from infer_align.torch.token_streams import token_stream
from tests.lm_zoo import PROMPTS, tiny_lm

JS, FORWARD = divergences.jensen_shannon, divergences.forward_kl
F_DPG = estimators.f_dpg(JS)
UNCHECKED = fit.__wrapped__ if hasattr(fit, "__wrapped__") else fit
"""Without the checks of types that the tests install: a user's own call."""


class Table(nn.Module):
    """A categorical policy over three outcomes, one a context."""

    def __init__(self, contexts: int = 0, seed: int = 0) -> None:
        super().__init__()
        shape = (contexts, 3) if contexts else (3,)
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))

    def __call__(self, prompts: Any = None) -> dist.Categorical:
        chosen = self.logits if prompts is None else self.logits[[int(p) for p in prompts]]
        return dist.Categorical(logits=chosen)


PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def program() -> None:
    y = pyro.sample("y", dist.Categorical(PRIOR))
    pyro.factor("reward", 1.0 * y)


def conditional(prompts: Any) -> None:
    y = pyro.sample("y", dist.Categorical(PRIOR.expand(len(prompts), 3)))
    pyro.factor("reward", 1.0 * y)


def ran(policy: Any, goal: Any = program, estimator: Any = F_DPG, **options: Any) -> list[Step]:
    return list(fit(policy, goal, estimator, **({"n": 8, "steps": 2} | options)))


# Arguments

WRONG: dict[str, tuple[Callable[[Table], dict[str, Any]], str]] = {
    "n = 1.5": (lambda p: {"n": 1.5}, "n must be a whole number of at least 1, got 1.5"),
    "n = True": (lambda p: {"n": True}, r"n must be a whole number .*got True \(bool\)"),
    "n = NaN": (lambda p: {"n": math.nan}, "n must be a"),
    "steps = inf": (lambda p: {"steps": math.inf}, "steps must be at least 1, got inf"),
    "steps = -1": (lambda p: {"steps": -1}, "steps must be at least 1, got -1"),
    "reuse = 1.5": (lambda p: {"reuse": 1.5}, "reuse must be a whole number"),
    "seed = -1": (lambda p: {"seed": -1}, "seed must be at least 0"),
    "seed = text": (lambda p: {"seed": "0"}, r"seed must be a whole number .*'0' \(str\)"),
    "token_budget = 1.5": (lambda p: {"token_budget": 1.5}, "token_budget must be a whole"),
    "norm = -1": (lambda p: {"max_grad_norm": -1}, "max_grad_norm must be positive .*got -1"),
    "norm = 0": (lambda p: {"max_grad_norm": 0.0}, "max_grad_norm must be positive .*got 0"),
    "norm = NaN": (lambda p: {"max_grad_norm": math.nan}, "max_grad_norm must be .*got nan"),
    "norm = -inf": (lambda p: {"max_grad_norm": -math.inf}, "max_grad_norm must be .*got -inf"),
    "rate = 0": (lambda p: {"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
    "rate = NaN": (lambda p: {"learning_rate": math.nan}, "learning_rate must be positive"),
    "a rate beside an optimizer": (
        lambda p: {"learning_rate": 1.0, "optimizer": torch.optim.SGD(p.parameters(), lr=0.1)},
        "is of the default optimizer",
    ),
    "an optimizer of another policy": (
        lambda p: {"optimizer": torch.optim.SGD(Table().parameters(), lr=0.1)},
        "holds 0 of the policy's 1 trainable tensors and 1 others",
    ),
    "an optimizer of more": (
        lambda p: {"optimizer": torch.optim.SGD([*p.parameters(), *Table().parameters()], lr=0.1)},
        "holds 1 of the policy's 1 trainable tensors and 1 others",
    ),
    "an optimizer that ascends": (
        lambda p: {"optimizer": torch.optim.SGD(p.parameters(), lr=0.1, maximize=True)},
        "maximize=True",
    ),
    "LBFGS": (lambda p: {"optimizer": torch.optim.LBFGS(p.parameters())}, "LBFGS"),
    "a scheduler alone": (
        lambda p: {
            "scheduler": torch.optim.lr_scheduler.ConstantLR(
                torch.optim.SGD(p.parameters(), lr=0.1)
            )
        },
        "without the optimizer",
    ),
    "a scheduler of another optimizer": (
        lambda p: {
            "optimizer": torch.optim.SGD(p.parameters(), lr=0.1),
            "scheduler": torch.optim.lr_scheduler.ConstantLR(
                torch.optim.SGD(p.parameters(), lr=0.1)
            ),
        },
        "another optimizer",
    ),
    "an estimator that is a divergence": (lambda p: {"estimator": JS}, "must be an Estimator"),
    "an estimator that is not called": (
        lambda p: {"estimator": estimators.vargrad},
        r"must be an Estimator, got vargrad \(function\)",
    ),
    "prompts that are a text": (
        lambda p: {"target": conditional, "prompts": "ab"},
        "prompts is of type str; it must be a list",
    ),
    "a proposal that is a law": (
        lambda p: {"proposal": dist.Categorical(PRIOR)},
        "the proposal must be a callable .*lambda: distribution",
    ),
    "a policy that is a function": (
        lambda p: {"policy": lambda: dist.Categorical(PRIOR)},
        "the policy must be .*parameters",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_that_cannot_be_right_is_refused(case: str) -> None:
    make, message = WRONG[case]
    policy = Table()
    before = policy.logits.detach().clone()
    options = {"policy": policy, "target": program, "estimator": F_DPG} | make(policy)
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        list(UNCHECKED(**({"n": 8, "steps": 2} | options)))
    assert torch.equal(policy.logits, before)


def test_a_target_that_is_a_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a target is a Pyro program .*got 0 \(int\)"):
        check_target(0)


def test_a_plateau_scheduler_is_refused() -> None:
    policy = Table()
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd)
    with pytest.raises(ValueError, match="must be told a loss"):
        ran(policy, optimizer=sgd, scheduler=plateau)


def test_no_bound_is_no_clipping() -> None:
    """None and inf leave the gradient as it is; a bound of half its norm halves the step."""

    def moved(bound: float | None) -> tuple[Tensor, float]:
        policy = Table()
        before = policy.logits.detach().clone()
        sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
        (step,) = ran(policy, steps=1, optimizer=sgd, max_grad_norm=bound)
        return policy.logits.detach() - before, step.metrics["grad_norm"]

    free, norm = moved(None)
    assert torch.equal(moved(math.inf)[0], free)
    assert torch.allclose(moved(norm / 2)[0], free / 2, rtol=1e-5)


@pytest.mark.parametrize("ask", ["potential", "factor", "feature", "prior"])
def test_a_complex_number_is_refused(ask: str) -> None:
    def factor() -> None:
        y = pyro.sample("y", dist.Categorical(PRIOR))
        pyro.factor("reward", y * (1.0 + 2.0j))

    class Law(dist.Categorical):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 0.5j

    goals: dict[str, Any] = {
        "potential": Target(dist.Categorical(PRIOR), lambda y: y * (1.0 + 2.0j), "mine"),
        "factor": factor,
        "feature": program,
        "prior": Target(Law(PRIOR), lambda y: 1.0 * y, "mine"),
    }
    features = {"wave": lambda y: 1j * y} if ask == "feature" else None
    with pytest.raises(TypeError, match="is complex"):
        collect(Table(), goals[ask], n=4, features=features)
    if ask != "feature":
        with pytest.raises(TypeError, match="is complex"):
            ran(Table(), goals[ask])


# Every step skipped


def test_a_fit_that_never_moved_says_so() -> None:
    never = Target(dist.Categorical(PRIOR), lambda y: indicator(y > 5), "never")
    with pytest.warns(UserWarning, match=r"all 3 steps were skipped.*'never' accepted 0\.0%"):
        steps = ran(Table(), never, steps=3)
    assert [s.metrics["skipped"] for s in steps] == [1.0] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ran(Table(), steps=3)
        next(iter(fit(Table(), never, F_DPG, n=4, steps=2)))  # left before its end


# Resuming


def settings(policy: Table, **changed: Any) -> dict[str, Any]:
    return {
        "goal": conditional,
        "estimator": estimators.f_dpg(JS, log_z=estimators.per_context_log_z(3)),
        "prompts": ["0", "1", "2"], "n": 6, "steps": 4, "prompts_per_step": 2, "seed": 3,
        "reuse": 2, "optimizer": torch.optim.AdamW(policy.parameters(), lr=0.1),
    } | changed  # fmt: skip


def saved() -> tuple[Table, dict[str, Any]]:
    policy = Table(3)
    steps = settings(policy)
    goal, estimator = steps.pop("goal"), steps.pop("estimator")
    run = fit(policy, goal, estimator, **steps)
    next(run)
    return policy, next(run).state.state_dict()


OTHERS: dict[str, tuple[Callable[[Table], dict[str, Any]], str]] = {
    "n": (lambda p: {"n": 7}, "n was 6 and is 7"),
    "seed": (lambda p: {"seed": 4}, "seed was 3 and is 4"),
    "reuse": (lambda p: {"reuse": 1}, "reuse was 2 and is 1"),
    "prompts by turns": (lambda p: {"prompts_per_step": 3}, "prompts_per_step was 2 and is 3"),
    "clipping": (lambda p: {"max_grad_norm": None}, "max_grad_norm was 1.0 and is none"),
    "divergence": (
        lambda p: {"estimator": estimators.f_dpg(FORWARD, log_z=estimators.per_context_log_z(3))},
        "estimator was 'f_dpg.jensen_shannon, .* and is 'f_dpg.forward_kl",
    ),
    "log Z": (lambda p: {"estimator": F_DPG}, "per_context_log_z.3.*batch_log_z"),
    "decay": (
        lambda p: {
            "estimator": estimators.f_dpg(JS, log_z=estimators.per_context_log_z(3, decay=0.5))
        },
        "decay=0.5",
    ),
    "prompt": (
        lambda p: {"prompts": ["0", "2", "2"]},
        "1 of 3 prompts are others, the first now '2'",
    ),
    "order": (
        lambda p: {"prompts": ["1", "0", "2"]},
        "2 of 3 prompts are others, in another order, the first now '1'",
    ),
    "fewer prompts": (lambda p: {"prompts": ["0", "1"]}, "were 3 prompts and are 2 prompts"),
    "rate": (
        lambda p: {"optimizer": torch.optim.AdamW(p.parameters(), lr=0.2)},
        "optimizer was .*'lr': 0.1.*'lr': 0.2",
    ),
    "optimizer": (
        lambda p: {"optimizer": torch.optim.SGD(p.parameters(), lr=0.1)},
        "optimizer was .*AdamW.*SGD",
    ),
    "proposal": (lambda p: {"proposal": Table(3)}, "proposal was False and is True"),
    "two of them": (lambda p: {"n": 7, "seed": 4}, "n was 6 and is 7; seed was 3 and is 4"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_fit_is_not_resumed(case: str) -> None:
    change, message = OTHERS[case]
    policy, state = saved()
    before = policy.logits.detach().clone()
    options = settings(policy, **change(policy))
    with pytest.raises(ValueError, match=message):
        ran(policy, options.pop("goal"), options.pop("estimator"), **options, resume=state)
    assert torch.equal(policy.logits, before)


def test_the_same_fit_is_resumed_to_any_number_of_steps() -> None:
    policy, state = saved()
    options = settings(policy, steps=7)
    steps = ran(policy, options.pop("goal"), options.pop("estimator"), **options, resume=state)
    assert [s.index for s in steps] == [2, 3, 4, 5, 6]


def test_other_columns_are_another_fit() -> None:
    def goal(prompts: Any, bonus: Any) -> None:
        y = pyro.sample("y", dist.Categorical(PRIOR.expand(len(prompts), 3)))
        pyro.factor("reward", y * torch.tensor(bonus, dtype=torch.float64))

    policy = Table(2)
    options: dict[str, Any] = {"prompts": ["0", "1"], "n": 4, "steps": 2}
    first = next(fit(policy, goal, F_DPG, columns={"bonus": [1.0, 2.0]}, **options))
    state = first.state.state_dict()
    with pytest.raises(ValueError, match="columns have other entries"):
        fit(policy, goal, F_DPG, columns={"bonus": [1.0, 3.0]}, **options, resume=state)


def test_a_resume_needs_the_policy_of_its_step() -> None:
    _, state = saved()
    other = Table(3, seed=1)
    options = settings(other)
    with pytest.raises(ValueError, match=r"not those that the state .* was saved with"):
        ran(other, options.pop("goal"), options.pop("estimator"), **options, resume=state)


def test_a_state_that_lacks_something_says_what() -> None:
    policy, state = saved()
    del state["definition"], state["batch"]
    options = settings(policy)
    with pytest.raises(ValueError, match=r"lacks batch, definition; give FitState.state_dict"):
        ran(policy, options.pop("goal"), options.pop("estimator"), **options, resume=state)


def linear(policy: Table, steps: int) -> dict[str, Any]:
    sgd = torch.optim.SGD(policy.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(sgd, 1.0, 0.1, total_iters=steps)
    return {"n": 64, "steps": steps, "optimizer": sgd, "scheduler": schedule}


def test_more_steps_under_a_schedule_say_what_the_rate_does() -> None:
    """It goes on as saved: .4 of the rate at step 2 of 3, then .1 for good."""
    policy = Table()
    run = fit(policy, program, F_DPG, **linear(policy, 3))
    next(run)
    state = next(run).state.state_dict()
    with pytest.warns(UserWarning, match=r"(?s)steps is 5 and was 3.*total_iters 3 \(given: 5\)"):
        steps = list(fit(policy, program, F_DPG, **linear(policy, 5), resume=state))
    rates = [s.metrics["learning_rate"] for s in steps]
    assert rates == pytest.approx([0.004, 0.001, 0.001])
    again = steps[-1].state.state_dict()
    assert again["definition"]["scheduler"]["total_iters"] == 3
    with pytest.raises(ValueError, match=r"the scheduler was .*LinearLR.* and is none"):
        fit(policy, program, F_DPG, **(linear(policy, 5) | {"scheduler": None}), resume=again)


def test_the_callers_own_objects_and_rate_may_go_on() -> None:
    """In one process: the same optimizer after some steps, its rate changed in the loop."""
    policy = Table()
    options = linear(policy, 6)
    run = fit(policy, program, F_DPG, **options)
    next(run)
    state = next(run).state.state_dict()
    assert len(list(fit(policy, program, F_DPG, **options, resume=state))) == 4
    policy = Table()
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    run = fit(policy, program, F_DPG, n=64, steps=3, optimizer=sgd)
    next(run)
    sgd.param_groups[0]["lr"] = 0.05
    state = next(run).state.state_dict()
    there = policy.logits.detach().clone()
    for optimizer in (sgd, torch.optim.SGD(policy.parameters(), lr=0.1)):
        with torch.no_grad():
            policy.logits.copy_(there)
        (last,) = fit(policy, program, F_DPG, n=64, steps=3, optimizer=optimizer, resume=state)
        assert last.metrics["learning_rate"] == 0.05


def test_a_checkpoint_keeps_what_defines_the_fit(tmp_path: Path) -> None:
    lm = tiny_lm()

    def goal(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("twos", (y == 2).sum(-1).double())

    policy = lm.trainable(lora=2)
    options: dict[str, Any] = {"prompts": PROMPTS, "n": 4, "steps": 2}
    step = next(fit(policy, goal, F_DPG, **options))
    save_checkpoint(tmp_path / "run", policy, step.state)
    state = load_checkpoint(tmp_path / "run")
    loaded = CausalLM.load(tmp_path / "run" / "policy", prior=lm)
    assert [s.index for s in fit(loaded, goal, F_DPG, **options, resume=state)] == [1]
    with pytest.raises(ValueError, match="prompts are others, in another order"):
        fit(loaded, goal, F_DPG, **(options | {"prompts": PROMPTS[::-1]}), resume=state)


# Adapters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 1.5}, "rank of the adapter, must be a whole number"),
        ({"lora": 0}, "rank of the adapter, must be at least 1, got 0"),
        ({"lora": 2, "alpha": math.nan}, "alpha must be positive, got nan"),
        ({"lora": 2, "seed": -1}, "seed must be at least 0"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    make = getattr(CausalLM.trainable, "__wrapped__", CausalLM.trainable)
    with pytest.raises((ValueError, TypeError), match=message):
        make(tiny_lm(), **options)


# Buffers


def test_a_reward_or_feature_or_caller_that_edits_in_place_spoils_nothing() -> None:
    """The same batch and numbers as without the edits, also where the batch is reused."""

    def spoiling(prompts: Any) -> None:
        y = pyro.sample("y", dist.Categorical(PRIOR.expand(len(prompts), 3)))
        pyro.factor("reward", 1.0 * y)
        y[:] = 0
        for ids in prompts:
            ids.clear()

    def run(goal: Any, *, edit: bool) -> tuple[Tensor, list[Tensor]]:
        policy, seen = Table(2), []
        prompts = [[0], [1]]
        wrapped = lambda ids=None: policy([i for (i,) in ids])
        wrapped.parameters = policy.parameters  # type: ignore[attr-defined]
        for step in fit(wrapped, goal, F_DPG, prompts=prompts, n=16, steps=4, reuse=2):
            seen.append(step.outcomes.clone())
            if edit:
                step.outcomes[:] = 0
                step.weights.target[:] = 0.0
        assert prompts == [[0], [1]]
        return policy.logits.detach(), seen

    plain, outcomes = run(conditional, edit=False)
    spoilt, others = run(spoiling, edit=True)
    assert torch.equal(plain, spoilt)
    assert all(torch.equal(a, b) for a, b in zip(outcomes, others, strict=True))


def test_a_feature_that_edits_in_place_spoils_nothing() -> None:
    def zero(y: Tensor) -> Tensor:
        y[:] = 0
        return 1.0 * y

    plain = collect(Table(), program, n=50, features={"a": lambda y: 1.0 * y})
    spoilt = collect(Table(), program, n=50, features={"z": zero, "a": lambda y: 1.0 * y})
    assert torch.equal(plain.outcomes, spoilt.outcomes)
    assert torch.equal(plain.features["a"], spoilt.features["a"])
    assert torch.equal(plain.weights.target, spoilt.weights.target)


# Contexts that a law brings itself, and devices


def test_contexts_without_prompts_have_ids() -> None:
    """Two contexts in the distributions themselves: log Z of each is found, not that of one."""

    class Pair(Table):
        def __call__(self, prompts: Any = None) -> dist.Categorical:
            return dist.Categorical(logits=self.logits)

    reward = torch.tensor([[0.0, 1.0, 2.0], [8.0, 9.0, 9.5]], dtype=torch.float64)
    goal = Target(dist.Categorical(PRIOR.expand(2, 3)), lambda y: reward[torch.arange(2), y], "two")
    estimator = estimators.f_dpg(JS, log_z=estimators.per_context_log_z(2))
    steps = ran(Pair(2), goal, estimator, n=400, steps=2)
    assert steps[0].weights.context is not None
    assert steps[0].weights.context.tolist() == [0, 1]
    past = steps[-1].state.estimator["log_z"]
    memory = torch.as_tensor(past["origin"]) + torch.as_tensor(past["log_mean"])
    exact = (PRIOR.log() + reward).logsumexp(-1)
    assert torch.allclose(memory, exact, atol=0.3)


# Threads


def fitted(seed: int) -> Tensor:
    """A fit through Pyro's stack and torch's default generator."""
    policy = Table(seed=seed)
    shift = float(seed)

    def goal() -> None:
        y = pyro.sample("y", dist.Categorical(PRIOR))
        pyro.factor("reward", shift * y)

    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    ran(policy, goal, n=16, steps=25, seed=seed, optimizer=optimizer)
    return policy.logits.detach()


def test_fits_in_threads_are_those_of_one() -> None:
    alone = [fitted(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fitted, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_adapters_made_in_threads_are_those_of_one() -> None:
    def made(seed: int) -> Tensor:
        lm = tiny_lm("llama")
        start.wait()
        policy = lm.trainable(lora=2, seed=seed)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    start = threading.Barrier(1)
    one = [made(seed) for seed in range(3)]
    start = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        three = list(pool.map(made, range(3)))
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_adapters_of_one_network_are_fitted_in_threads() -> None:
    """Two adapters share the network, which runs one at a time."""

    def both(lm: CausalLM, pool: Callable[..., Any]) -> list[Tensor]:
        def goal(prompts: Any) -> None:
            y = pyro.sample("y", lm(prompts))
            pyro.factor("twos", (y == 2).sum(-1).double())

        def run(policy: CausalLM) -> Tensor:
            sgd = torch.optim.SGD(policy.parameters(), lr=0.5)
            ran(policy, goal, prompts=PROMPTS, n=4, steps=4, optimizer=sgd)
            return torch.cat([p.detach().flatten() for p in policy.parameters()])

        return list(pool(run, [lm.trainable(lora=2, seed=k) for k in range(2)]))

    one = both(tiny_lm("llama"), map)
    with ThreadPoolExecutor(2) as pool:
        two = both(tiny_lm("llama"), pool.map)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


class Holder:
    """A policy of these parameters, which its law does not read."""

    def __init__(self, parameters: Any) -> None:
        self.held = parameters

    def __call__(self) -> dist.Categorical:
        return dist.Categorical(PRIOR)

    def parameters(self) -> Any:
        return self.held


NO_PARAMETERS: dict[str, tuple[Any, str]] = {
    "a class": (Table, r"is the class Table; make one of it: Table\(...\)"),
    "none": (Holder([]), r"\(Holder\) has no trainable parameters, 0 in all"),
    "frozen": (Holder([torch.zeros(3)]), "no trainable parameters, 1 in all"),
    "None": (Holder(None), "gave None"),
    "numbers": (Holder([3.0]), r"gave 3.0 \(float\)"),
    "unread": (Holder([torch.zeros(3, requires_grad=True)]), "does not depend on its parameters"),
}


@pytest.fixture
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' check of annotations would speak before ours."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("name", NO_PARAMETERS)
def test_a_policy_without_parameters_that_move(name: str) -> None:
    policy, said = NO_PARAMETERS[name]
    with pytest.raises((TypeError, ValueError), match=said):
        list(fit(policy, program, F_DPG, n=8, steps=1))


FEATURES: dict[str, tuple[Any, str]] = {
    "a number": (3, "mapping from names"),
    "a function": (lambda y: y, "mapping from names"),
    "no function": ({"a": 3}, r"'a' must be one of functions .*got 3 \(int\)"),
    "no name": ({1: lambda y: y}, "one name is 1"),
    "of None": ({"a": lambda y: None}, "'a' is a NoneType"),
    "of text": ({"a": lambda y: "x"}, "'a' is a str"),
    "of one number": ({"a": lambda y: 1.0}, r"'a' has shape \(\) for outcomes of shape \(8,\)"),
}


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_none(name: str) -> None:
    wrong, said = FEATURES[name]
    with pytest.raises((TypeError, ValueError), match=said):
        collect(Table(), program, n=8, features=wrong)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("wrong", [3, "x", [1]])
def test_columns_that_are_no_mapping(wrong: Any) -> None:
    with pytest.raises(TypeError, match="columns must be a mapping"):
        fit(Table(), program, F_DPG, columns=wrong)


def test_another_adapter_is_drawn_and_scored_while_one_is_fitted() -> None:
    """Without turns a pass would run with the adapter that the other thread switched to."""

    def goal(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("twos", (y == 2).sum(-1).double())

    def used(network: Any, k: int) -> list[Tensor]:
        law, found = network(PROMPTS), []
        for seed in range(4):
            y, drawn = law.sample_with_log_prob((4,), generator=torch.Generator().manual_seed(seed))
            stream = token_stream(law)
            found += [drawn, law.log_prob(y), stream.start(2), stream.advance(y[:2, :, 0])]
        return [x.detach() for x in found]

    def run(job: int) -> Any:
        start.wait()
        if job:
            return used([other, both][job - 1], job)
        sgd = torch.optim.SGD(fitted.parameters(), lr=0.5)
        ran(fitted, goal, prompts=PROMPTS, n=4, steps=8, optimizer=sgd)
        return [p.detach().clone() for p in fitted.parameters()]

    results = []
    for threads in (1, 3):
        lm = tiny_lm("llama")
        fitted, other = (lm.trainable(lora=2, seed=k) for k in range(2))
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.5)
        both = TokenProduct([other, lm], [1.5, -0.5])
        # Hand over to the other threads in the midst of a pass.
        lm._network.shared.module.model.layers[0].register_forward_pre_hook(
            lambda *_: time.sleep(1e-4)
        )
        start = threading.Barrier(threads)
        with ThreadPoolExecutor(threads) as pool:
            results.append(list(pool.map(run, range(3))) if threads > 1 else [*map(run, range(3))])
    for one, many in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))
