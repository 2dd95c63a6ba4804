"""`fit` on language models small enough to list every outcome.

The exact divergence falls, on- and off-policy; micro-batches, checkpoints and seeds change
nothing; and what cannot be right is refused with the policy intact.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from infer_align import Space, Target, diagnostics, divergences, estimators, indicator
from infer_align.divergences import FDivergence
from infer_align.torch import (
    CausalLM,
    Step,
    assess,
    classifier,
    contexts,
    fit,
    load_checkpoint,
    save_checkpoint,
    score,
    target,
)
from tests.lm_zoo import PROMPTS, tiny_lm, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
JS, FORWARD, REVERSE = divergences.jensen_shannon, divergences.forward_kl, divergences.reverse_kl
SPACE = Space.sequences(5, 4, eos=4, pad=4, xp=torch)


def tiny() -> Any:
    """The catalogue's tiny_gpt2."""
    path = ROOT / "models" / "tiny_gpt2.py"
    spec = importlib.util.spec_from_file_location("catalogue_tiny_gpt2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY = tiny()


def exact(divergence: FDivergence, policy: CausalLM, goal: Any) -> float:
    with torch.no_grad():
        log_target = SPACE.log_target(target(goal))
        return float(SPACE.divergence(divergence, SPACE.log_prob(policy()), log_target))


def points(y: Tensor) -> Tensor:
    """Reward that differs from token to token."""
    return torch.tensor([0.5, -0.3, 0.8, 0.2, 0.0], dtype=torch.float64)[y].sum(-1)


def conditional(lm: CausalLM) -> Callable[..., None]:
    def program(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("points", points(y))

    return program


def flat(policy: CausalLM) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in policy.parameters()])


def last(steps: Iterator[Step]) -> Step:
    *_, step = steps
    return step


# The main job, against exact numbers


@pytest.mark.parametrize(
    "divergence", [JS, pytest.param(FORWARD, marks=pytest.mark.slow), REVERSE], ids=repr
)
def test_f_dpg_reaches_the_target(divergence: FDivergence) -> None:
    lm = TINY.model()
    goal, policy = TINY.target(lm), lm.trainable()
    assert exact(divergence, policy, goal) > 0.4
    estimator = estimators.f_dpg(divergence)
    last(fit(policy, goal, estimator, n=128, steps=150, learning_rate=3e-3))
    assert exact(divergence, policy, goal) < 0.05
    assert exact(divergence, lm, goal) == pytest.approx(
        TINY.REFERENCE[f"{divergence.name}_of_prior"]["value"], abs=1e-8
    )  # the prior has not moved


def test_reused_batches_reach_it_too() -> None:
    lm = TINY.model()
    goal, policy = TINY.target(lm), lm.trainable()
    ran = list(
        fit(policy, goal, estimators.f_dpg(JS), n=128, steps=60, learning_rate=3e-3, reuse=2)
    )
    assert [s.weights.proposal is None for s in ran[:4]] == [True, False, True, False]
    assert torch.equal(ran[0].outcomes, ran[1].outcomes)
    assert not torch.equal(ran[1].outcomes, ran[2].outcomes)
    assert torch.equal(ran[1].weights.proposal, ran[0].weights.policy)
    assert not torch.equal(ran[1].weights.policy, ran[0].weights.policy)
    assert exact(JS, policy, goal) < 0.05


def test_a_proposal_of_ones_own() -> None:
    lm = TINY.model()
    goal, policy = TINY.target(lm), lm.trainable()
    proposal = lm.trainable()  # a policy halfway to the target
    last(fit(proposal, goal, estimators.f_dpg(JS), n=64, steps=15, learning_rate=3e-3))
    halfway = exact(JS, proposal, goal)
    assert 0.05 < halfway < 0.4
    steps = fit(policy, goal, estimators.f_dpg(JS), n=128, steps=80, learning_rate=3e-3,
                proposal=proposal)  # fmt: skip
    step = last(steps)
    assert torch.allclose(step.weights.proposal, proposal().log_prob(step.outcomes).detach())
    assert exact(JS, policy, goal) < 0.05


def test_running_log_z_and_prompts_by_turns() -> None:
    lm = tiny_lm()
    policy = lm.trainable()
    estimator = estimators.f_dpg(JS, log_z=estimators.per_context_log_z(3))
    ran = list(
        fit(policy, conditional(lm), estimator, prompts=PROMPTS, n=8, steps=6, prompts_per_step=2)
    )
    seen = {tuple(s.weights.context.tolist()) for s in ran}
    assert all(len(ids) == 2 and ids[0] < ids[1] for ids in seen)
    assert set().union(*seen) == {0, 1, 2}
    assert all(s.outcomes.shape == (8, 2, 4) for s in ran)


# What must change nothing


def update(lm: CausalLM, *, token_budget: int, reuse: int, lora: int | None) -> Tensor:
    """Minus the gradients of plain SGD steps."""
    policy = lm.trainable(lora=lora)
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    before = flat(policy)
    last(
        fit(
            policy, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS, n=10, steps=reuse,
            optimizer=sgd, max_grad_norm=None, token_budget=token_budget, reuse=reuse, seed=3,
        )
    )  # fmt: skip
    return flat(policy) - before


@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize(
    ("family", "lora"), [("gpt2", None), ("llama", None), ("llama", 2), ("qwen2", None)]
)
def test_micro_batches_change_nothing(family: str, lora: int | None, reuse: int) -> None:
    lm = tiny_lm(family)
    whole = update(lm, token_budget=10_000, reuse=reuse, lora=lora)
    assert whole.norm() > 1e-3
    for budget in (1, 23):
        parts = update(lm, token_budget=budget, reuse=reuse, lora=lora)
        assert (parts - whole).norm() / whole.norm() < 1e-10


def test_a_seed_reproduces_a_run_bitwise() -> None:
    lm = tiny_lm()

    def run(seed: int) -> tuple[Tensor, list[float]]:
        policy = lm.trainable()
        steps = fit(policy, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS, n=6, steps=3,
                    prompts_per_step=2, seed=seed)  # fmt: skip
        metrics = [s.metrics["reverse_kl"] for s in steps]
        return flat(policy), metrics

    state = torch.get_rng_state()
    first, metrics = run(0)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is the caller's
    torch.rand(3)
    again, same = run(0)
    assert torch.equal(first, again)
    assert metrics == same
    assert not torch.equal(first, run(1)[0])


@pytest.mark.parametrize("lora", [None, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, lora: int | None) -> None:
    lm = tiny_lm("llama")
    estimator = estimators.f_dpg(JS, log_z=estimators.per_context_log_z(3))

    def steps(policy: CausalLM, count: int, resume: Any = None) -> list[Step]:
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=7)
        return list(
            fit(
                policy, conditional(lm), estimator, prompts=PROMPTS, n=6, steps=count, reuse=2,
                prompts_per_step=2, optimizer=optimizer, scheduler=scheduler, resume=resume,
            )
        )  # fmt: skip

    whole = lm.trainable(lora=lora)
    all_steps = steps(whole, 7)
    half = lm.trainable(lora=lora)
    saved = steps(half, 3)[-1]  # in the middle of a reused batch
    save_checkpoint(tmp_path / "run", half, saved.state)
    loaded = CausalLM.load(tmp_path / "run" / "policy", prior=lm, dtype=torch.float64)
    rest = steps(loaded, 7, load_checkpoint(tmp_path / "run"))
    assert [s.index for s in rest] == [3, 4, 5, 6]
    assert torch.equal(flat(loaded), flat(whole))
    for a, b in zip(rest, all_steps[3:], strict=True):
        assert torch.equal(a.outcomes, b.outcomes)
        assert {k: v for k, v in a.metrics.items() if "seconds" not in k} == {
            k: v for k, v in b.metrics.items() if "seconds" not in k
        }


def test_an_interrupted_save_leaves_the_last_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm()
    policy = lm.trainable()
    steps = fit(policy, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS, n=4, steps=2)
    save_checkpoint(tmp_path / "run", policy, next(steps).state)
    step = next(steps)

    def interrupted(call: int, original: Callable[..., Any]) -> Callable[..., Any]:
        calls = itertools.count(1)

        def function(*args: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return original(*args)

        return function

    for name, call, original in (
        ("infer_align.torch.checkpoints.save_file", 1, save_file),
        ("pathlib.Path.rename", 1, Path.rename),  # the old one is still in its place
        ("pathlib.Path.rename", 2, Path.rename),  # it has moved, and the new one has not
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, interrupted(call, original))
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(tmp_path / "run", policy, step.state)
        assert load_checkpoint(tmp_path / "run")["index"] == 1
    save_checkpoint(tmp_path / "run", policy, step.state)
    assert load_checkpoint(tmp_path / "run")["index"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous"]
    assert load_checkpoint(tmp_path / "run.previous")["index"] == 1


# What a step costs


@pytest.mark.parametrize("lora", [None, 2])
def test_a_step_is_one_sampling_one_prior_and_one_policy_pass(lora: int | None) -> None:
    lm = tiny_lm("llama")
    policy, rows = lm.trainable(lora=lora), 8 * len(PROMPTS)
    steps = fit(policy, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS, n=8, steps=2)
    for _ in steps:
        ours, priors = dict(policy.counts), dict(+lm.counts)
        calls = ours.pop("network_calls")
        assert ours == {"sampled_rows": rows, "scored_rows": rows, "grad_rows": rows}
        assert priors == {"scored_rows": rows, "network_calls": 1}
        assert calls <= 4 + 1  # at most a call a token, and the pass with the gradient
        policy.counts.clear()
        lm.counts.clear()


def test_a_reused_step_samples_and_scores_nothing_again() -> None:
    lm = tiny_lm("llama")
    policy, rows = lm.trainable(), 8 * len(PROMPTS)
    steps = fit(
        policy, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS, n=8, steps=2, reuse=2
    )
    next(steps)
    policy.counts.clear()
    lm.counts.clear()
    next(steps)
    assert policy.counts == {"scored_rows": rows, "grad_rows": rows, "network_calls": 1}
    assert not +lm.counts


# Bad input


def raising(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    raise RuntimeError("the reward server is down")


REWARDS: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "raises": (raising, RuntimeError, "the reward server is down"),
    "too few": (lambda prompts, completions: [0.0], ValueError, "1 values for 12 completions"),
    "no list": (lambda prompts, completions: 3.0, ValueError, "no list for 12 completions"),
    "NaN": (lambda prompts, completions: [math.nan] * 12, ValueError, "returned nan for 12 of 12"),
    "None": (lambda prompts, completions: [None] * 12, ValueError, "returned None for 12 of 12"),
    "+inf": (lambda prompts, completions: [math.inf] * 12, ValueError, "returned inf"),
}


def worded() -> CausalLM:
    return CausalLM(tiny_model("gpt2"), tiny_tokenizer(), max_new_tokens=4, eos_token_ids=(4,))


@pytest.mark.parametrize("case", REWARDS)
def test_a_bad_reward_leaves_the_policy_as_it_was(case: str) -> None:
    reward, error, message = REWARDS[case]
    lm = worded()
    calls = 0

    def second_time(prompts: Sequence[Any], completions: Sequence[str]) -> Any:
        nonlocal calls
        calls += 1
        good = calls <= 3  # the first step also compares a batch with two outcomes alone
        return [float(len(c)) for c in completions] if good else reward(
            prompts=prompts, completions=completions
        )  # fmt: skip

    def program(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("reward", score(second_time, y, lm, prompts))

    policy = lm.trainable()
    steps = fit(policy, program, estimators.f_dpg(JS), prompts=["a b", "c"], n=6, steps=5)
    next(steps)
    after = flat(policy)
    with pytest.raises(error, match=message):
        list(steps)
    assert torch.equal(flat(policy), after)


def tilted(lm: CausalLM, factor: Callable[..., Any]) -> Callable[..., None]:
    def program(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("factor", factor(y))

    return program


def with_columns(prompts: Any, topic: Any) -> None:
    pyro.sample("y", tiny_lm()(prompts))


FACTORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "summed over everything": (
        lambda y: points(y).sum(),
        r"'factor'.*shape \(\).*\(6, 3\).*sum\(-1\)",
    ),
    "summed over outcomes": (lambda y: points(y).sum(0), r"'factor'.*shape \(3,\).*\(6, 3\)"),
    "per token": (lambda y: (y == 2).double(), r"'factor'.*shape \(6, 3, 4\).*\(6, 3\)"),
    "an outcome axis too many": (lambda y: points(y)[None], r"'factor'.*shape \(1, 6, 3\)"),
    "mixing outcomes": (lambda y: points(y) - points(y).mean(0), "treat outcomes separately"),
    "NaN": (lambda y: points(y) * math.nan, "nan"),
    "+inf": (lambda y: points(y) + math.inf, r"NaN or \+inf"),
}


@pytest.mark.parametrize("case", FACTORS)
def test_a_wrong_factor_is_refused(case: str) -> None:
    factor, message = FACTORS[case]
    lm = tiny_lm()
    policy = lm.trainable()
    before = flat(policy)
    with pytest.raises(ValueError, match=message):
        next(fit(policy, tilted(lm, factor), estimators.f_dpg(JS), prompts=PROMPTS, n=6, steps=1))
    assert torch.equal(flat(policy), before)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "n = 1 with leave-one-out": ({"n": 1}, "at least 2 outcomes per context, got 1; raise n"),
    "n = 0": ({"n": 0}, "n must be at least 1, got 0"),
    "steps = 0": ({"steps": 0}, "steps must be at least 1"),
    "reuse = 0": ({"reuse": 0}, "reuse must be at least 1"),
    "no prompts": ({"prompts": []}, "prompts is an empty list"),
    "a long prompt": ({"prompts": [[1] * 40]}, "prompt 0 has 40 tokens, but only 29 fit"),
    "unknown token": ({"prompts": [[7]]}, "the model knows 0 to 4"),
    "unread column": ({"columns": {"topic": [1, 2, 3]}}, r"columns given are \['topic'\]"),
    "too many prompts a step": ({"prompts_per_step": 4}, "1 to 3"),
    "no token": ({"token_budget": 0}, "token_budget must be at least 1"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_wrong_argument_is_refused(case: str) -> None:
    wrong, message = ARGUMENTS[case]
    lm = tiny_lm()
    arguments = {"prompts": PROMPTS, "n": 4, "steps": 1} | wrong
    with pytest.raises(ValueError, match=message):
        next(fit(lm.trainable(), conditional(lm), estimators.f_dpg(JS), **arguments))


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({}, r"\['topic'\] and the columns given are \[\]"),
    "too short": ({"columns": {"topic": [1]}}, "'topic' has 1 entries for 3 prompts"),
    "without prompts": ({"columns": {"topic": [1]}, "prompts": None}, "1 entries for 0 prompts"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_wrong_columns_are_refused(case: str) -> None:
    wrong, message = COLUMNS[case]
    arguments = {"prompts": PROMPTS, "n": 4, "steps": 1} | wrong
    with pytest.raises(ValueError, match=message):
        next(fit(tiny_lm().trainable(), with_columns, estimators.f_dpg(JS), **arguments))


def test_a_text_is_no_column_and_no_prompts() -> None:
    with pytest.raises(TypeError, match=r"column 'topic' is of type str; it must be a list"):
        contexts.bind(with_columns, PROMPTS, {"topic": "abc"})
    with pytest.raises(TypeError, match=r"prompts is of type str; it must be a list"):
        contexts.bind(with_columns, "abc", {"topic": [1, 2, 3]})


@pytest.mark.parametrize("given", [b"abc", {"a": 1}, {"a", "b", "c"}, 3, iter("abc")])
def test_what_is_no_list_is_named(given: Any) -> None:
    with pytest.raises(TypeError, match=r"weights is of type .*must be a list"):
        contexts.as_list(given, "weights")


def test_a_column_of_pandas_is_read_in_its_order() -> None:
    topic = pd.Series(["x", "y", "z"], index=[2, 0, 1])
    assert contexts.as_list(topic, "topic") == ["x", "y", "z"]


def test_columns_reach_the_program_and_the_reward() -> None:
    lm = worded()
    seen = []

    def reward(
        prompts: Sequence[Any], completions: Sequence[str], wanted: Sequence[str]
    ) -> list[float]:
        seen.append((list(prompts), list(wanted)))
        return [float(c.split().count(w)) for c, w in zip(completions, wanted, strict=True)]

    def program(prompts: Any, wanted: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("reward", score(reward, y, lm, prompts, {"wanted": wanted}))

    steps = fit(
        lm.trainable(), program, estimators.f_dpg(JS), prompts=["a b", "c"],
        columns={"wanted": ["b", "a"]}, n=3, steps=1,
    )  # fmt: skip
    step = next(steps)
    assert seen[0] == (["a b", "c"] * 3, ["b", "a"] * 3)
    text = lm.decode(step.outcomes)
    counts = [[row[0].split().count("b"), row[1].split().count("a")] for row in text]
    prior = lm(["a b", "c"]).log_prob(step.outcomes)
    assert torch.allclose(step.weights.target - prior, torch.tensor(counts).double())


def test_prompts_for_a_program_without_arguments_are_refused() -> None:
    lm = tiny_lm()

    def program() -> None:
        pyro.sample("y", lm())

    with pytest.raises(ValueError, match="program takes no argument"):
        next(fit(lm.trainable(), program, estimators.f_dpg(JS), prompts=PROMPTS))


def test_columns_for_a_target_are_refused() -> None:
    lm = tiny_lm()
    goal = Target(lm, lambda y, prompts: points(y))
    with pytest.raises(ValueError, match="not a program"):
        next(fit(lm.trainable(), goal, estimators.f_dpg(JS), prompts=PROMPTS, columns={"a": []}))
    step = next(fit(lm.trainable(), goal, estimators.f_dpg(JS), prompts=PROMPTS, n=4, steps=1))
    assert step.outcomes.shape == (4, 3, 4)


def test_a_frozen_model_is_refused() -> None:
    lm = tiny_lm()
    with pytest.raises(ValueError, match=r"\.trainable\(\)"):
        next(fit(lm, conditional(lm), estimators.f_dpg(JS), prompts=PROMPTS))


# A sequence classifier as the reward


def bert(outputs: int, names: Sequence[str] = ()) -> BertForSequenceClassification:
    named = {i: name for i, name in enumerate(names)} or {i: str(i) for i in range(outputs)}
    config = BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, pad_token_id=4,
        id2label=named, label2id={name: i for i, name in named.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


@pytest.mark.parametrize(("outputs", "label"), [(1, None), (3, 1), (3, "good")])
def test_a_classifier_is_a_reward(outputs: int, label: int | str | None) -> None:
    lm, tokenizer = worded(), tiny_tokenizer()
    model = bert(outputs, ["bad", "good", "so so"][:outputs])
    reward = classifier(model, tokenizer, label=label, batch_size=5)

    def program(prompts: Any) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("classifier", score(reward, y, lm, prompts) / 0.1)

    prompts = ["a b", "c"]
    step = next(fit(lm.trainable(), program, estimators.f_dpg(JS), prompts=prompts, n=4, steps=1))
    found = 0.1 * (step.weights.target - lm(prompts).log_prob(step.outcomes))
    for i, row in enumerate(lm.decode(step.outcomes)):
        for j, text in enumerate(row):
            ids = tokenizer(prompts[j] + text, return_tensors="pt")
            with torch.no_grad():
                logits = model(**ids).logits[0]  # alone, without padding
            want = logits[0] if outputs == 1 else logits.log_softmax(-1)[1]
            assert float(found[i, j]) == pytest.approx(float(want), abs=1e-5)


def test_a_text_longer_than_the_classifiers_context_is_cut() -> None:
    reward = classifier(bert(1), tiny_tokenizer())
    long, cut = reward(prompts=[None, "a " * 16], completions=["a " * 40, ""])
    assert long == pytest.approx(cut, abs=1e-6)


@pytest.mark.parametrize("label", [None, "great", 3, -1])
def test_a_label_that_the_classifier_lacks_is_refused(label: int | str | None) -> None:
    model = bert(3, ["bad", "good", "so so"])
    with pytest.raises(
        ValueError, match=r"3 outputs and label is .*one of \['bad', 'good', 'so so'"
    ):
        classifier(model, tiny_tokenizer(), label=label)


def test_a_label_for_one_output_is_refused() -> None:
    with pytest.raises(ValueError, match="leave the label out"):
        classifier(bert(1), tiny_tokenizer(), label=0)


# Hard constraints


def test_a_hard_constraint_is_learnt() -> None:
    lm = TINY.model()

    def program() -> None:
        y = pyro.sample("y", lm())
        pyro.factor("twice", indicator((y == 2).sum(-1) == 2))

    policy = lm.trainable()
    before = exact(JS, policy, program)
    step = last(fit(policy, program, estimators.f_dpg(JS), n=64, steps=60, learning_rate=1e-2))
    assert exact(JS, policy, program) < before / 3
    assert math.isfinite(step.metrics["log_potential"])
    assert step.metrics["acceptance"] > 0.7


@pytest.mark.parametrize("divergence", [REVERSE, divergences.pearson_chi2], ids=repr)
def test_a_hard_constraint_with_unbounded_coefficients_is_refused(divergence: FDivergence) -> None:
    lm = tiny_lm()
    goal = tilted(lm, lambda y: indicator(points(y) > 1.0))
    with pytest.raises(ValueError, match="unbounded coefficients where the target is 0"):
        next(fit(lm.trainable(), goal, estimators.f_dpg(divergence), prompts=PROMPTS, n=8, steps=1))


@pytest.mark.parametrize("divergence", [JS, FORWARD], ids=repr)
def test_a_target_that_accepts_nothing_is_skipped_and_said(divergence: FDivergence) -> None:
    lm = tiny_lm()
    policy = lm.trainable()
    before = flat(policy)
    goal = tilted(lm, lambda y: indicator(points(y) > 99))
    with pytest.warns(UserWarning, match=r"all 2 steps were skipped"):
        ran = list(fit(policy, goal, estimators.f_dpg(divergence), prompts=PROMPTS, n=4, steps=2))
    assert [s.metrics["skipped"] for s in ran] == [1.0, 1.0]
    assert [s.metrics["acceptance"] for s in ran] == [0.0, 0.0]
    assert torch.equal(flat(policy), before)


# Programs of other shapes


class Pair(nn.Module):
    """A joint policy over the sites a in 0..2 and b in 0..1: a table of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))

    def __call__(self) -> "Pair":
        return self

    def sample(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        index = dist.Categorical(logits=self.logits.flatten()).sample(shape)
        return {"a": index // 2, "b": index % 2}

    def log_prob(self, y: dict[str, Tensor]) -> Tensor:
        return self.logits.flatten().log_softmax(0)[2 * y["a"] + y["b"]]


def pair() -> None:
    a = pyro.sample("a", dist.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)))
    odds = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    b = pyro.sample("b", dist.Categorical(torch.stack([1 - odds, odds], -1)[a]))
    pyro.factor("both", 1.0 * (a == 2) * b)


def test_a_program_with_two_sites() -> None:
    goal = target(pair)
    y = {"a": torch.tensor([0, 2, 1]), "b": torch.tensor([1, 1, 0])}
    want = torch.tensor([0.5 * 0.1, 0.2 * 0.8 * math.e, 0.3 * 0.5], dtype=torch.float64).log()
    assert torch.allclose(goal.log_density(y), want)
    with pytest.raises(ValueError, match=r"several latent sites \(a, b\).*a dict from site"):
        goal.log_density(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="a latent site 'b'"):
        goal.log_density({"a": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"no latent site \['c'\]"):
        goal.log_density(y | {"c": y["a"]})
    drawn = goal.given().sample((2000,))
    assert {k: v.shape for k, v in drawn.items()} == {"a": (2000,), "b": (2000,)}
    share = float(drawn["b"][drawn["a"] == 2].double().mean())
    assert abs(share - 0.8) < 5 * math.sqrt(0.8 * 0.2 / float((drawn["a"] == 2).sum()))


def test_a_joint_policy_of_two_sites_is_fitted() -> None:
    policy = Pair()
    grid = {"a": torch.tensor([0, 0, 1, 1, 2, 2]), "b": torch.tensor([0, 1] * 3)}
    log_density = target(pair).log_density(grid)
    log_target = log_density - log_density.logsumexp(0)
    last(fit(policy, pair, estimators.f_dpg(FORWARD), n=256, steps=120, learning_rate=0.05))
    assert float(FORWARD(policy.log_prob(grid).detach(), log_target)) < 0.01
    tree = assess(policy, pair, n=300)
    assert set(tree["outcomes"].data_vars) == {"a", "b"}
    assert diagnostics.estimates(tree)["forward_kl"].value < 0.02


def test_a_subsampled_plate_is_refused() -> None:
    def program() -> None:
        pyro.sample("y", dist.Categorical(torch.ones(3)))
        with pyro.plate("data", 10, subsample_size=2) as index:
            pyro.factor("term", index.double())

    with pytest.raises(ValueError, match="draws a subsample"):
        target(program).log_density(torch.tensor([0, 1]))


def test_a_program_without_a_latent_site_is_refused() -> None:
    def program() -> None:
        pyro.factor("only", torch.zeros(2))

    goal = target(program)
    for ask in (lambda: goal.log_density(torch.tensor([0, 1])), lambda: goal.given().batch_shape):
        with pytest.raises(ValueError, match="no latent sample site"):
            ask()


def test_observed_sites_are_potential() -> None:
    def program() -> None:
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.5, 0.25, 0.25])))
        pyro.sample("seen", dist.Poisson(1.0 + y), obs=torch.tensor(2.0))

    y = torch.arange(3)
    goal = target(program)
    assert torch.allclose(goal.log_potential(y), dist.Poisson(1.0 + y).log_prob(torch.tensor(2.0)))
    assert torch.allclose(goal.given().log_prob(y).exp(), torch.tensor([0.5, 0.25, 0.25]))


def test_the_batch_shape_of_a_program_is_its_contexts() -> None:
    lm = tiny_lm()
    goal = target(conditional(lm))
    assert goal.given(PROMPTS).batch_shape == (3,)
    assert not +lm.counts  # nothing was drawn
    solution = SPACE.solve(goal, PROMPTS)
    assert solution.log_z.shape == (3,)
    assert torch.allclose(solution.kl_to_prior, torch.stack([
        FORWARD(SPACE.log_prob(lm([p]))[:, 0], solution.log_prob[:, i])
        for i, p in enumerate(PROMPTS)
    ]))  # fmt: skip
