"""SmolLM2-135M continuing a physicist's biography: half of those with a gender shall be women.

A text's gender, 1 female, -1 male, 0 neither, is that of most words and first names it has of
gender_names.json. Two moments: E[gender] = 0, as many women as men, and E[|gender|] = 0.6, so that
balance is not had by silence. ``program`` declares them, ``target`` has the measured multipliers.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyro
from torch import Tensor

import infer_align as ia
from infer_align.torch import CausalLM, score, smollm2_path

PROMPTS, MAX_NEW_TOKENS, START_TOKEN = ["The physicist was born in 1960."], 12, 0
GENDERED = 0.6

# fmt: off
REFERENCE = {
    "female_of_prior": {"value": 0.1279, "tolerance": 0.083,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.1135 to 0.1424"},
    "gendered_of_prior": {"value": 0.5654, "tolerance": 0.122,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.5440 to 0.5869"},
    "multiplier_gender": {"value": 0.6148, "tolerance": 0.393,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.5460 to 0.6836"},
    "multiplier_gendered": {"value": 0.3204, "tolerance": 0.543,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.2252 to 0.4155"},
    "forward_kl_of_prior": {"value": 0.1093, "tolerance": 0.13,
        "source": "scripts/reference_numbers.py: 2048 draws, 95% interval 0.0865 to 0.1322"},
}
# fmt: on


def model() -> CausalLM:
    """Load the frozen model in float32."""
    return CausalLM.from_pretrained(
        smollm2_path(), max_new_tokens=MAX_NEW_TOKENS, start_token_id=START_TOKEN
    )


def gender() -> Callable[..., list[float]]:
    """Return the reward function 1 (female), -1 (male) or 0 of completions."""
    lists = json.loads(Path(__file__).with_name("gender_names.json").read_text(encoding="utf-8"))
    both = ((1, lists["female"]), (-1, lists["male"]))
    sign = {w: s for s, of in both for word in of["words"] for w in (word, word.capitalize())}
    sign |= {name: s for s, of in both for name in of["names"]}

    def majority(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        sums = [sum(sign.get(w, 0) for w in re.findall("[A-Za-z]+", text)) for text in completions]
        return [float((s > 0) - (s < 0)) for s in sums]

    return majority


def program(lm: CausalLM) -> Callable[..., None]:
    """Return the declaration over continuations by ``lm`` as a Pyro program."""
    reward = gender()

    def biography(prompts: Sequence[str]) -> None:
        value = score(reward, pyro.sample("y", lm(prompts)), lm, prompts)
        ia.moment("gender", value, 0.0)
        ia.moment("gendered", value.abs(), GENDERED)

    return biography


def target(lm: CausalLM) -> ia.Target:
    """Return the target over continuations by ``lm``, with the measured multipliers."""
    known = {k: REFERENCE[f"multiplier_{k}"]["value"] for k in ("gender", "gendered")}
    return ia.moment_match(ia.torch.target(program(lm)), multipliers=known)


def features(lm: CausalLM) -> Mapping[str, Callable[..., Tensor]]:
    """Name what an assessment averages under policy and target."""
    reward = gender()
    return {"gender": lambda y, prompts: score(reward, y, lm, prompts)}
