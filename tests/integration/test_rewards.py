"""Reward functions: what they are given, what they may return, and classifiers among them."""

import asyncio
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from infer_align.torch import CausalLM, classifier, rewards, score
from tests.lm_zoo import EOS, tiny_lm, tiny_model, tiny_tokenizer

Y = torch.tensor([[[1, 2, EOS, EOS], [3, 3, 3, 3]], [[2, EOS, EOS, EOS], [1, 1, EOS, EOS]]])
"""Two outcomes of two prompts; the second one of the first row has no end."""
TEXTS = ["a b", "c c c c", "b", "a a"]
IDS = [[1, 2, EOS], [3, 3, 3, 3], [2, EOS], [1, 1, EOS]]
CHAT = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
NUMBERS = [0.5, -1.25, 3.0, 0.0]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM(tiny_model("gpt2"), tiny_tokenizer(), max_new_tokens=4, eos_token_ids=(EOS,))


def seen(reward: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a reward with open arguments was called with."""
    got: dict[str, Any] = {}

    def recording(**given: Any) -> Any:
        got.update(given)
        return reward(**given)

    score(recording, *arguments, **options)
    return got


def zeros(completions: Sequence[Any], **given: Any) -> list[float]:
    return [0.0] * len(completions)


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# What a reward is given


def test_arguments_of_a_reward(lm: CausalLM) -> None:
    got = seen(zeros, Y, lm, ["a", "b c"], {"topic": ["x", "y"]})
    logs = [got.pop("log_extra"), got.pop("log_metric")]
    state = got.pop("trainer_state")
    assert got == {
        "prompts": ["a", "b c"] * 2,
        "completions": TEXTS,
        "completion_ids": IDS,
        "topic": ["x", "y"] * 2,
    }
    assert (state.global_step, state.max_steps) == (0, 0)
    for log in logs:
        log("column", NUMBERS)


def test_a_chat_has_its_completion_in_a_message(lm: CausalLM) -> None:
    got = seen(zeros, Y, lm, [CHAT, "b"])
    assert got["prompts"] == [CHAT, "b"] * 2
    assert got["completions"] == [message("a b"), "c c c c", message("b"), "a a"]


@pytest.mark.parametrize("as_ids", [list, tuple, np.array, torch.tensor])
def test_prompts_in_token_ids_arrive_as_text(lm: CausalLM, as_ids: Callable[..., Any]) -> None:
    # The BOS of an encoded prompt is no part of its text; an EOS that the user wrote is.
    got = seen(zeros, Y, lm, [as_ids([2, 3]), as_ids([0, 1, 4])])
    assert got["prompts"] == ["b c", "a </s>"] * 2


def test_without_prompts(lm: CausalLM) -> None:
    got = seen(zeros, Y[:, 0], lm, columns={"topic": ["x"]})
    assert (got["prompts"], got["topic"]) == ([None, None], ["x", "x"])
    assert got["completions"] == ["a b", "b"]


def test_a_reward_gets_the_arguments_that_it_names(lm: CausalLM) -> None:
    found = score(lambda completion_ids: [len(x) for x in completion_ids], Y, lm, ["a", "b"])
    assert found.tolist() == [[3, 4], [2, 3]]
    found = score(lambda completions: [len(x) for x in completions], Y, lm, ["a", "b"])
    assert found.tolist() == [[3, 7], [1, 3]]
    found = score(lambda prompts, other=1: [len(x) for x in prompts], Y, lm, ["a", "b c"])
    assert found.tolist() == [[1, 3], [1, 3]]


def test_what_a_reward_spoils_is_its_own(lm: CausalLM) -> None:
    chat, column, y = [dict(m) for m in CHAT], [["x"], np.zeros(2)], Y.clone()

    def spoils(prompts: Any, completions: Any, completion_ids: Any, column: Any) -> list[float]:
        first = [len(prompts), len(completions), len(completion_ids), len(column)]
        assert first == [4, 4, 4, 4]
        assert prompts[2] == CHAT
        assert column[2] == ["x"]
        prompts[0].pop()
        prompts[0][0]["content"] = "spoilt"
        column[0].append("spoilt")
        column[1][:] = 9.0
        completion_ids[0].clear()
        for x in (prompts, completions, completion_ids, column):
            x.clear()
        return NUMBERS

    found = score([spoils, spoils], y, lm, [chat, "b"], {"column": column})
    assert found.tolist() == [[1.0, -2.5], [6.0, 0.0]]
    assert chat == CHAT
    assert column[0] == ["x"]
    assert column[1].tolist() == [0.0, 0.0]
    assert torch.equal(y, Y)


# What it may return


RETURNS: dict[str, Callable[[], Any]] = {
    "list": lambda: NUMBERS,
    "tuple": lambda: tuple(NUMBERS),
    "NumPy": lambda: np.array(NUMBERS),
    "NumPy scalars": lambda: [np.float64(x) for x in NUMBERS],
    "pandas": lambda: pd.Series(NUMBERS, index=[3, 2, 1, 0]),
    "tensor": lambda: torch.tensor(NUMBERS, requires_grad=True),
    "tensors": lambda: [torch.tensor(x) for x in NUMBERS],
    "generator": lambda: (x for x in NUMBERS),
}


@pytest.mark.parametrize("case", RETURNS)
def test_numbers_of_every_kind(lm: CausalLM, case: str) -> None:
    found = score(lambda completions: RETURNS[case](), Y, lm, ["a", "b"])
    assert found.dtype == torch.float64
    assert found.tolist() == [NUMBERS[:2], NUMBERS[2:]]
    assert not found.requires_grad


def test_booleans_and_a_rejection(lm: CausalLM) -> None:
    found = score(lambda completions: [True, False, -math.inf, 1], Y, lm, ["a", "b"])
    assert found.tolist() == [[1.0, 0.0], [-math.inf, 1.0]]


WRONG: dict[str, tuple[Any, str]] = {
    "a text": ("1234", "no list for 4 completions but a str"),
    "bytes": (b"1234", "no list for 4 completions but a bytes"),
    "a dict": (dict.fromkeys(range(4), 0.0), "no list for 4 completions but a dict"),
    "a set": ({1.0, 2.0, 3.0, 4.0}, "no list for 4 completions but a set"),
    "a number": (3.0, "no list for 4 completions but a float"),
    "nothing": (None, "no list for 4 completions but a NoneType"),
    "a column": (np.zeros((4, 1)), r"an array of shape \(4, 1\) for 4 completions"),
    "a scalar": (torch.tensor(1.0), r"an array of shape \(\) for 4 completions"),
    "a frame": (pd.DataFrame({"x": NUMBERS}), "no list for 4 completions but a DataFrame"),
    "too many": ([0.0] * 5, "5 values for 4 completions"),
    "digits": (["1", "2", "3", "4"], "'1' of type str for a completion"),
    "lists": ([[1.0]] * 4, r"\[1\.0\] of type list for a completion"),
    "complex": (np.array([1j] * 4), "of type complex for a completion"),
    "NaN": ([0.0, math.nan, 0.0, math.nan], "nan for 2 of 4 completions, the first 'c c c c'"),
    "NaN of pandas": (pd.Series([1.0, None, 1.0, 1.0]), "nan for 1 of 4 completions"),
    "inf": (np.array([1.0, math.inf, 1.0, 1.0]), "inf for 1 of 4 completions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_number_for_each_is_refused(lm: CausalLM, case: str) -> None:
    output, message = WRONG[case]

    def wrong(completions: Sequence[str]) -> Any:
        return output

    with pytest.raises(ValueError, match=f"reward 'wrong' returned .*{message}"):
        score(wrong, Y, lm, ["a", "b"])


# Several rewards, and those that do not apply


def test_rewards_add_up_where_they_apply(lm: CausalLM) -> None:
    one = lambda completions: [1.0, None, 3.0, None]
    two = lambda completions: pd.Series([10.0, 20.0, None, -math.inf], dtype="Float64")
    found = score([one, two], Y, lm, ["a", "b"], weights=[2.0, 0.5])
    assert found.tolist() == [[2 * 1 + 0.5 * 10, 0.5 * 20], [2 * 3.0, -math.inf]]
    assert score((one, two), Y, lm, ["a", "b"]).tolist() == [[11.0, 20.0], [3.0, -math.inf]]
    # Without its weight a reward rejects nothing, and -inf is not 0 times -inf.
    hard = lambda completions: [-math.inf, 0.0, 0.0, 0.0]
    assert score([zeros, hard], Y, lm, ["a", "b"], weights=[1.0, 0.0]).tolist() == [[0, 0], [0, 0]]
    assert score(one_of(NUMBERS), Y, lm, ["a", "b"], weights=[-2.0]).tolist() == [
        [-1.0, 2.5],
        [-6.0, 0.0],
    ]


def one_of(values: Sequence[Any]) -> Callable[..., Any]:
    return lambda completions: values


def test_an_outcome_to_which_nothing_applies_is_named(lm: CausalLM) -> None:
    def picky(completions: Sequence[str]) -> list[float | None]:
        return [1.0, None, None, 1.0]

    def pickier(completions: Sequence[str]) -> np.ndarray:
        return np.array([1.0, None, 1.0, 1.0], dtype=object)

    message = "reward 'picky' returned None for 2 of 4 completions, the first 'c c c c'"
    with pytest.raises(ValueError, match=message):
        score(picky, Y, lm, ["a", "b"])
    with pytest.raises(ValueError, match="'picky' and 'pickier' returned None for 1 of 4"):
        score([picky, pickier], Y, lm, ["a", "b"])


WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "too few": ({"weights": [1.0]}, "1 weights were given for 2 rewards"),
    "NaN": ({"weights": [1.0, math.nan]}, "a weight of a reward is nan"),
    "inf": ({"weights": [math.inf, 1.0]}, "a weight of a reward is inf"),
    "a rejection upside down": ({"weights": [1.0, -1.0]}, r"negative weight .*\+inf"),
    "a short column": ({"columns": {"topic": ["x"]}}, "'topic' has 1 entries for 2 prompts"),
    "a column of ours": ({"columns": {"prompts": ["x", "y"]}}, "may not be called 'prompts'"),
    "a column unread": ({"columns": {"topic": ["x", "y"]}}, r"\['topic'\] are read by no reward"),
    "other prompts": ({"prompts": ["a"]}, r"1 prompts were given for outcomes .*\(2,\)"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_wrong_argument_of_score_is_refused(lm: CausalLM, case: str) -> None:
    wrong, message = WEIGHTS[case]
    given: dict[str, Any] = {"prompts": ["a", "b"]} | wrong
    both = [one_of(NUMBERS), one_of([-math.inf, 0.0, 0.0, 0.0])]
    with pytest.raises(ValueError, match=message):
        score(both, Y, lm, **given)


def test_a_text_is_no_column(lm: CausalLM) -> None:
    with pytest.raises(TypeError, match="column 'topic' is of type str; it must be a list"):
        score(lambda topic: NUMBERS, Y, lm, ["a", "b"], {"topic": "xy"})  # type: ignore[dict-item]


# What is no reward


NO_REWARDS: dict[str, tuple[Any, type[Exception], str]] = {
    "a hub id": ("owner/name", TypeError, "the reward is 'owner/name' of type str"),
    "bytes": (b"ab", TypeError, "of type bytes"),
    "a list of texts": (["owner/name"], TypeError, "the reward is 'owner/name' of type str"),
    "an empty list": ([], ValueError, "list of rewards is empty"),
    "a model": (tiny_model("gpt2"), TypeError, r"GPT2LMHeadModel.*classifier\(model, tokenizer\)"),
    "another name": (lambda texts: NUMBERS, ValueError, r"'<lambda>' needs \['texts'\]"),
    "by position": (lambda completions, /: NUMBERS, ValueError, r"needs \['completions'\]"),
    "a missing column": (
        lambda completions, solution, **rest: NUMBERS,
        ValueError,
        r"needs \['solution'\].*columns of these names",
    ),
    "no arguments": (lambda: NUMBERS, ValueError, "needs arguments"),
}


@pytest.mark.parametrize("case", NO_REWARDS)
def test_what_is_no_reward_is_refused(lm: CausalLM, case: str) -> None:
    reward, error, message = NO_REWARDS[case]
    typed = error is not TypeError  # the annotations say the same, and are checked in the tests
    with pytest.raises(error, match=message):
        score(reward, Y, lm, ["a", "b"]) if typed else rewards._rewards(reward)


class Judge:
    """A reward that is an object."""

    def __call__(self, completions: Sequence[str]) -> list[float]:
        return [1 / len(c.replace("b", "")) for c in completions]


def raises(completions: Sequence[str]) -> list[float]:
    raise KeyError("no such key")


def leaves(completions: Sequence[str]) -> list[float]:
    sys.exit("bye")


async def leaves_later(completions: Sequence[str]) -> list[float]:
    sys.exit(3)


async def raises_later(completions: Sequence[str]) -> list[float]:
    await asyncio.sleep(0)
    raise ValueError("late")


def deep(completions: Sequence[str]) -> list[float]:
    return list(np.ones(2) + np.ones(3))


RAISING: dict[str, tuple[Any, str]] = {
    "raises": (raises, r"reward 'raises' raised KeyError: 'no such key' \(in raises, .*\.py, line"),
    "an object": (Judge(), r"reward 'Judge' raised ZeroDivisionError: .*\(in <listcomp>|__call__"),
    "a partial": (functools.partial(raises), "reward 'raises' raised KeyError"),
    "exits": (leaves, r"reward 'leaves' called sys\.exit\(bye\)"),
    "exits in a loop": (leaves_later, r"reward 'leaves_later' called sys\.exit\(3\)"),
    "raises in a loop": (raises_later, "reward 'raises_later' raised ValueError: late"),
    "a generator": (
        lambda completions: (1 / 0 for _ in completions), "reward '<lambda>' raised ZeroDivision",
    ),
    "in a library": (deep, r"reward 'deep' raised ValueError: .*\(in deep, .*test_rewards\.py"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAISING)
def test_what_a_reward_raises_has_its_name(lm: CausalLM, case: str) -> None:
    reward, message = RAISING[case]
    with pytest.raises(RuntimeError, match=message) as caught:
        score([leaves_no_trace, reward], Y, lm, ["a", "b"])
    assert caught.value.__cause__ is not None


async def leaves_no_trace(completions: Sequence[str]) -> list[float]:
    """Begun before the other one fails: nothing may be said of it."""
    return NUMBERS


# Rewards that wait


async def waits(completions: Sequence[str]) -> list[float]:
    await asyncio.sleep(0)
    return NUMBERS


class Waits:
    """An object whose call is a coroutine."""

    async def __call__(self, completions: Sequence[str]) -> np.ndarray:
        return np.array(NUMBERS)


@pytest.mark.parametrize(
    "reward",
    [waits, Waits(), functools.partial(waits), lambda completions: waits(completions)],
    ids=["function", "object", "partial", "lambda"],
)
def test_async_rewards(lm: CausalLM, reward: Callable[..., Any]) -> None:
    assert score(reward, Y, lm, ["a", "b"]).tolist() == [NUMBERS[:2], NUMBERS[2:]]


def test_async_rewards_where_a_loop_runs(lm: CausalLM) -> None:
    async def notebook() -> Any:
        return score(waits, Y, lm, ["a", "b"]).tolist()

    assert asyncio.run(notebook()) == [NUMBERS[:2], NUMBERS[2:]]


def test_async_rewards_run_side_by_side_in_one_loop(lm: CausalLM) -> None:
    loops, ready = [], [asyncio.Event(), asyncio.Event()]

    def other(me: int) -> Callable[..., Any]:
        async def meets(completions: Sequence[str]) -> list[float]:
            loops.append(asyncio.get_running_loop())
            ready[me].set()
            await asyncio.wait_for(ready[1 - me].wait(), 5)
            return NUMBERS

        return meets

    for _ in range(2):  # a connection that a reward keeps belongs to its loop
        found = score([other(0), other(1)], Y, lm, ["a", "b"])
        assert found.tolist() == [[1.0, -2.5], [6.0, 0.0]]
    assert len(loops) == 4
    assert len(set(loops)) == 1


def test_an_async_reward_that_scores_another_is_refused(lm: CausalLM) -> None:
    async def nested(completions: Sequence[str]) -> list[float]:
        return score(waits, Y, lm, ["a", "b"]).flatten().tolist()

    with pytest.raises(RuntimeError, match="would wait for itself"):
        score(nested, Y, lm, ["a", "b"])


# Classifiers


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, pad_token_id=4, num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def alone(model: PreTrainedModel, ids: Sequence[int]) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


def test_a_classifier_reads_prompts_in_token_ids(lm: CausalLM) -> None:
    reward = classifier(bert(), tiny_tokenizer())
    found = score(reward, Y, lm, [[2], [0, 3, 1]])
    # "b" + "a b" is "ba b", and a word that the tokenizer does not know is "a".
    assert torch.equal(found, score(reward, Y, lm, ["b", "c a"]))
    assert float(found[0, 0]) == pytest.approx(alone(bert(), [1, 2]), abs=1e-6)
    assert float(found[1, 1]) == pytest.approx(alone(bert(), [3, 1, 1]), abs=1e-6)
    assert not torch.equal(found, score(reward, Y, lm, [None, None]))


def test_a_classifier_reads_chats_by_its_own_template(lm: CausalLM) -> None:
    tokenizer = tiny_tokenizer(adds_bos=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'a' if m['role'] == 'user' else 'c' }} {{ m['content'] }} "
        "{% endfor %}{% if add_generation_prompt %}b{% endif %}"
    )
    reward = classifier(bert(), tokenizer)
    chat = [{"role": "user", "content": "b"}]
    found = score(reward, Y, lm, [chat, "b"])
    # user: a, its b; assistant: c, its completion. Text has the BOS that the tokenizer adds.
    assert float(found[0, 0]) == pytest.approx(alone(bert(), [1, 2, 3, 1, 2]), abs=1e-6)
    assert float(found[1, 0]) == pytest.approx(alone(bert(), [1, 2, 3, 2]), abs=1e-6)
    assert float(found[1, 1]) == pytest.approx(alone(bert(), [0, 1, 1]), abs=1e-6)
    other = score(reward, Y, lm, [[{"role": "system", "content": "b"}], "b"])
    assert not torch.equal(other[:, 0], found[:, 0])  # a role is not flattened


@pytest.mark.parametrize("known", [True, False], ids=["known length", "unknown length"])
def test_a_decoder_reads_the_last_token_of_each_text(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    config = GPT2Config(
        vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=1,
        bos_token_id=0, eos_token_id=4, pad_token_id=2, initializer_range=0.6,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GPT2ForSequenceClassification(config).eval()
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    if not known:
        monkeypatch.setattr(GPT2Config, "attribute_map", {"num_hidden_layers": "n_layer"})
        assert getattr(model.config, "max_position_embeddings", None) is None
        tokenizer.model_max_length = int(1e30)
    found = score(classifier(model, tokenizer), Y, lm, ["c ", "b "])
    for (i, j), ids in {(0, 0): [3, 1, 2], (1, 0): [3, 2], (1, 1): [2, 1, 1]}.items():
        assert float(found[i, j]) == pytest.approx(alone(model, ids), abs=1e-5)


def test_what_a_classifier_cannot_read_is_refused(lm: CausalLM) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(RuntimeError, match="classifier's tokenizer has no chat template"):
        score(classifier(bert(), bare), Y, lm, [CHAT, "b"])
    with pytest.raises(TypeError, match="got a prompt of type list"):
        classifier(bert(), tiny_tokenizer())(prompts=[[1, 2]], completions=["a"])
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        classifier(bert(), bare)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        classifier(bert(), tiny_tokenizer(), batch_size=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        score(zeros, Y, tiny_lm(), [[1], [2]])


# Functions of the shapes that TRL ships, written by hand


def solves(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    log_extra: Any = None,
    **kwargs: Any,
) -> list[float | None]:
    """As its `accuracy_reward`: messages, a column, `None` where the column says nothing."""
    contents = [completion[0]["content"] for completion in completions]
    if log_extra is not None:
        log_extra("solution", list(solution))
    return [
        None if s == "?" else float(s in c.split()) for c, s in zip(contents, solution, strict=True)
    ]


class Overlong:
    """As its `get_soft_overlong_punishment`: an object that reads the ids."""

    __name__ = "overlong"

    def __call__(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [min(0.0, 2.0 - len(ids)) for ids in completion_ids]


def warms_up(completions: Any, trainer_state: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    """As in its documentation: a reward that reads how far the training is."""
    log_metric("step", trainer_state.global_step)
    return [1.0 if trainer_state.global_step > 0 else 0.5] * len(completions)


def test_rewards_of_the_shapes_of_trl(lm: CausalLM) -> None:
    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    column = {"solution": ["b", "?"]}
    three = [solves, Overlong(), warms_up]
    found = score(three, Y, lm, chats, column, weights=[1.0, 0.25, 2.0])
    # Lengths 3, 4, 2, 3: -1, -2, 0, -1. The second prompt has no solution.
    assert found.tolist() == [[1 - 0.25 + 1, -0.5 + 1], [1 + 0 + 1, -0.25 + 1]]
