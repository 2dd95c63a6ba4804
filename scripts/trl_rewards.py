"""Rewards that ship with TRL, through its trainer's own code and through `score`, as JSON.

`tests/integration/test_rewards_trl.py` runs it where TRL is installed.
"""

import asyncio
import contextlib
import json
import threading
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerState,
)
from trl.rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)
from trl.trainer import grpo_trainer

from infer_align.torch import CausalLM, classifier, score
from tests.lm_zoo import EOS, tiny_model

WORDS = {"<s>": 0, "<think>two</think>": 1, r"\boxed{4}": 2, r"\boxed{5}": 3, "</s>": EOS}
Y = torch.tensor([[[1, 2, EOS, EOS], [2, 2, 2, 2]], [[1, 3, EOS, EOS], [1, 2, 3, EOS]]])
CHATS = [[{"role": "user", "content": "2+2?"}], [{"role": "user", "content": "Why?"}]]
TEXTS = ["2+2?", "Why?"]
SOLUTION = {"solution": ["$4$", ""]}  # none for the second


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    made.chat_template = (
        "{% for m in messages %}{{ '<s> ' if m['role'] == 'user' else '' }}{{ m['content'] }} "
        "{% endfor %}"
    )
    return made


async def later(completions: list[Any], **kwargs: Any) -> list[float | None]:
    """An async reward that does not apply to short completions."""
    await asyncio.sleep(0)
    return [None if len(ids) < 4 else 0.25 for ids in kwargs["completion_ids"]]


def overlong_and_step(completion_ids: Any, trainer_state: Any, log_metric: Any, **rest: Any) -> Any:
    """A reward that uses what only a trainer gives."""
    log_metric("step", trainer_state.global_step)
    return [float(len(ids) + trainer_state.global_step) for ids in completion_ids]


def of_trl(
    rewards: list[Any], y: torch.Tensor, lm: CausalLM, prompts: list[Any], columns: dict[str, Any]
) -> torch.Tensor:
    """`GRPOTrainer._calculate_rewards`, on the least of a trainer."""
    grpo_trainer.profiling_context = lambda *_: contextlib.nullcontext()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    names = [getattr(r, "__name__", type(r).__name__) for r in rewards]
    trainer = object.__new__(grpo_trainer.GRPOTrainer)
    vars(trainer).update(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False), reward_funcs=rewards,
        reward_processing_classes=[lm.tokenizer] * len(rewards), reward_func_names=names,
        state=TrainerState(), _log_completion_extra=lambda *_: None, _log_metric=lambda *_: None,
        environments=None, async_loop=loop, chat_template_kwargs={},
    )  # fmt: skip
    Trainer._prepare_inputs = lambda self, x: x
    rows = y.reshape(-1, y.shape[-1])
    texts, n = lm.decode(rows), len(y)
    inputs = [{k: v[i] for k, v in columns.items()} for _ in range(n) for i in range(len(prompts))]
    chat = grpo_trainer.is_conversational({"prompt": prompts[0]})
    completions = [[{"role": "assistant", "content": t}] if chat else t for t in texts]
    ids = [r[:k] for r, k in zip(rows.tolist(), lm.lengths(rows).tolist(), strict=True)]
    per_reward = trainer._calculate_rewards(inputs, prompts * n, completions, ids)
    loop.call_soon_threadsafe(loop.stop)
    return per_reward.double()


def main() -> None:
    lm = CausalLM(tiny_model("gpt2"), tokenizer(), max_new_tokens=4, eos_token_ids=(EOS,))
    cases: dict[str, tuple[Any, list[Any]]] = {
        "accuracy": (accuracy_reward, CHATS[:1]),
        "reasoning accuracy": (reasoning_accuracy_reward, CHATS[:1]),
        "think format": (think_format_reward, CHATS),
        "overlong": (get_soft_overlong_punishment(4, 2), TEXTS),
        "repetition": (get_repetition_penalty_reward(1), TEXTS),
        "cosine": (get_cosine_scaled_reward(4), CHATS[:1]),
        "trainer": (overlong_and_step, TEXTS),
    }
    found: dict[str, Any] = {}
    for name, (reward, prompts) in cases.items():
        y = Y[:, : len(prompts)]
        used = SOLUTION if name in ("accuracy", "reasoning accuracy", "cosine") else {}
        columns = {k: v[: len(prompts)] for k, v in used.items()}
        theirs = of_trl([reward], y, lm, prompts, columns).reshape(y.shape[:-1])
        ours = score(reward, y, lm, prompts, columns)
        found[name] = {"ours": ours.tolist(), "trl": theirs.tolist()}
    several, weights = [accuracy_reward, later, think_format_reward], [1.0, 0.5, 2.0]
    theirs = (of_trl(several, Y, lm, CHATS, SOLUTION) * torch.tensor(weights)).nansum(1)
    ours = score(several, Y, lm, CHATS, SOLUTION, weights=weights)
    found["several"] = {"ours": ours.tolist(), "trl": theirs.reshape(Y.shape[:-1]).tolist()}

    config = GPT2Config(
        vocab_size=5, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=1,
        bos_token_id=0, eos_token_id=4, pad_token_id=4, initializer_range=0.6,
    )  # fmt: skip
    torch.manual_seed(1)
    model = GPT2ForSequenceClassification(config).eval()
    for name, prompts in (("chats", CHATS), ("texts", TEXTS)):
        theirs = of_trl([model], Y, lm, prompts, {}).reshape(Y.shape[:-1])
        ours = score(classifier(model, lm.tokenizer), Y, lm, prompts)
        found[f"a model on {name}"] = {"ours": ours.tolist(), "trl": theirs.tolist()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
