"""Model calls for each effective draw of a rare hard constraint: rejection, importance, SMC.

    python benchmarks/samplers.py [--quick] [--json]

A call is an outcome that a model draws or scores. Rejection needs 1/P of them for a draw; P is
exact where outcomes are listed. Of SMC an effective draw is counted by ancestry, (Σ_e S_e)²/Σ_e
S_e² with S_e the weight that descends from first particle e, which resampling cannot flatter.
Three tasks: the letter c in 7 of 8 places of a memoryless model (models/rare_constraint); the word
"c b a" in 4 tokens of a random GPT-2 (models/tiny_gpt2); and, without --quick, a word in 16 tokens
of SmolLM2-135M, whose P is estimated from the next-token probabilities along prior draws.
"""

import argparse
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from infer_align import condition, exact, product, samplers
from infer_align.exact.selection import autoregressive, threshold
from infer_align.jax import memoryless
from infer_align.jax import source as jax_source
from infer_align.torch import source as torch_source
from infer_align.torch.token_streams import token_stream
from infer_align.torch.twists import fit_twist, head_twist

WORD = (3, 2, 1)
"""Of tiny_gpt2: "c b a"."""
LEXICAL = " purple"
"""Of SmolLM2: one token of its vocabulary."""


def entry(name: str) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "models" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"catalogue_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def effective(log_weights: np.ndarray, cluster: np.ndarray | None = None) -> float:
    """Effective number of independent draws: by outcome, or by first ancestor."""
    w = np.exp(log_weights - max(log_weights.max(), -1e300))
    if cluster is not None:
        w = np.bincount(cluster.ravel(), w.ravel())
    return float(w.sum() ** 2 / max((w**2).sum(), 1e-300))


def row(task: str, probability: float, name: str, n: int, draw: Callable[[int], Any]) -> dict:
    """Draw once, and compare with what rejection would need."""
    start = time.perf_counter()
    sample = draw(n)
    seconds = time.perf_counter() - start
    own = effective(sample.log_weights)
    lineages = effective(sample.log_weights, sample.cluster)
    found = math.isfinite(float(sample.log_z.item()))
    per_draw = sample.calls / lineages if found else math.inf
    return {
        "task": task,
        "method": name,
        "n": n,
        "calls": sample.calls,
        "ess_share": own / n if found else 0.0,
        "effective": lineages if found else 0.0,
        "calls_per_effective": per_draw,
        "times_fewer_than_rejection": 1 / probability / per_draw,
        "log_z": float(sample.log_z.item()),
        "log_p": math.log(probability),
        "seconds": seconds,
    }


def measured_rejection(task: str, probability: float, source: Any, draws: int) -> dict:
    """Plain rejection, for the effective draws that it really gives."""
    start = time.perf_counter()
    log_p, accepted = -math.inf, 0
    drawn = source.draw(draws)
    accepted = int((drawn.log_target > -math.inf).sum())
    log_p = math.log(accepted / draws) if accepted else -math.inf
    per_draw = draws / accepted if accepted else math.inf
    return {
        "task": task,
        "method": "rejection",
        "n": draws,
        "calls": draws,
        "ess_share": accepted / draws,
        "effective": float(accepted),
        "calls_per_effective": per_draw,
        "times_fewer_than_rejection": 1 / probability / per_draw,
        "log_z": log_p,
        "log_p": math.log(probability),
        "seconds": time.perf_counter() - start,
    }


def letters() -> list[dict]:
    """models/rare_constraint."""
    model, task = entry("rare_constraint"), "7 of 8 letters"
    probability = model.REFERENCE["probability"]["value"]
    prior = memoryless(jnp.log(jnp.array(model.PRIOR)), length=model.LENGTH)
    target = condition(prior, lambda y: model.count(y) >= model.AT_LEAST)
    make = lambda seed: jax_source(jax.random.key(seed), target)

    def missing(prefix: Any) -> Any:
        """Each other letter costs a factor, and two of them all: no arithmetic of the model."""
        other = (prefix != model.LETTER).sum(-1)[..., None] + (np.arange(3) != model.LETTER)
        return np.where(other > 1, -math.inf, -3.0 * other)

    law = exact.reward_law(model.PRIOR, [0, 0, 1], model.LENGTH)
    ahead = samplers.policy_twist(
        autoregressive(law, threshold(law, model.AT_LEAST)), autoregressive(law, law.log_prob)
    )
    prune = samplers.prefix_twist(lambda y: jnp.where((y != model.LETTER).sum(-1) > 1, -jnp.inf, 0))
    smc = lambda twist: lambda n: samplers.smc(make(1), n, twist=twist)
    return [
        measured_rejection(task, probability, make(0), 200_000),
        row(task, probability, "importance", 20_000, lambda n: samplers.importance(make(1), n)),
        row(task, probability, "SMC, prefixes pruned", 20_000, smc(prune)),
        row(task, probability, "SMC, rough twist", 1000, smc(samplers.next_twist(missing))),
        row(task, probability, "SMC, exact twist", 1000, smc(ahead)),
    ]


def word_automaton(word: tuple[int, ...], vocabulary: int) -> exact.Automaton:
    """Accepts sequences with the word in them, by its longest prefix seen last."""
    table = []
    for state in range(len(word) + 1):
        if state == len(word):
            table.append([state] * vocabulary)
            continue
        seen = [(*word[:state], token) for token in range(vocabulary)]
        fits = lambda s: max(k for k in range(len(s) + 1) if s[len(s) - k :] == word[:k])
        table.append([fits(s) for s in seen])
    return exact.Automaton(table, [False] * len(word) + [True])


def tiny(*, quick: bool) -> list[dict]:
    """models/tiny_gpt2: a word."""
    model, task = entry("tiny_gpt2"), '"c b a" by a GPT-2'
    lm = model.model()
    continuations = lm(None)
    has_word = word_automaton(WORD, 5)
    target = condition(continuations, has_word.accepts)
    probability = math.exp(float(exact.solve(target).log_z))
    make = lambda seed: torch_source(target, seed=seed)
    # What the word needs, as if letters were independent and equally likely.
    rough = exact.lookahead(product(memoryless(jnp.zeros(5), length=4, eos=4), has_word))
    stream = token_stream(continuations, hidden=True)
    learnt = head_twist(stream)
    start = time.perf_counter()
    n, steps = (128, 60) if quick else (256, 150)
    optimizer = torch.optim.Adam(learnt.head.parameters(), lr=0.05)
    exact_draws = samplers.smc(make(2), n, twist=rough)
    chosen = np.random.default_rng(0).choice(n, n, p=exact_draws.probabilities)
    spent = exact_draws.calls
    for step in fit_twist(
        make(3),
        learnt,
        n=n,
        steps=steps,
        optimizer=optimizer,
        outcomes=exact_draws.outcomes[chosen],
    ):
        spent += step.sample.calls + n
    print(f"  head learnt with {spent} calls, {time.perf_counter() - start:.1f} s", flush=True)
    smc = lambda twist, **settings: lambda n: samplers.smc(make(1), n, twist=twist, **settings)
    return [
        measured_rejection(task, probability, make(0), 20_000 if quick else 100_000),
        row(task, probability, "SMC, twist of equal letters", 1000, smc(rough)),
        row(task, probability, "SMC, learnt head", 1000, smc(learnt, stream=stream)),
        row(task, probability, "SMC, exact twist", 1000, smc(exact.lookahead(target))),
    ]


def lexical(stream: Any, token: int, draws: int, seed: int) -> tuple[float, float, np.ndarray]:
    """P(the token occurs) and its standard error, and its rate at each place, from prior draws.

    The sum over t of its next-token probability, up to where it occurs, is unbiased for P.
    """
    rng = np.random.default_rng(seed)
    total, rate, seen = np.zeros(draws), [], np.zeros(draws, dtype=bool)
    ended, log_probs = np.zeros(draws, dtype=bool), stream.start(draws)
    for t in range(stream.length):
        p = log_probs[:, 0].double().exp()
        here = np.where(seen | ended, 0.0, p[:, token].numpy())
        total += here
        rate.append(here.mean())
        cumulative = p.cumsum(-1)
        level = torch.as_tensor(rng.random((draws, 1))) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, level, right=True).clamp(max=p.shape[1] - 1)
        drawn = tokens[:, 0].numpy()
        seen, ended = seen | (drawn == token), ended | np.isin(drawn, stream.eos)
        if t + 1 < stream.length:
            log_probs = stream.advance(tokens)
    error = total.std(ddof=1) / math.sqrt(draws)
    return float(total.mean()), float(error), np.array(rate)


def smollm2() -> list[dict]:
    """SmolLM2-135M continuing "The movie was": a word must occur."""
    model = entry("smollm2_sentiment")
    lm = model.model()
    assert lm.tokenizer is not None
    (token,) = lm.tokenizer.encode(LEXICAL, add_special_tokens=False)
    continuations = lm(["Once upon a time, there was a"])
    stream = token_stream(continuations)
    probability, error, rate = lexical(stream, token, 192, seed=5)
    print(f"  P({LEXICAL!r}) {probability:.3e} ± {error:.1e}, from 192 draws", flush=True)
    target = condition(continuations, lambda y, *_: (y == token).any(-1))

    def ahead(prefix: Any) -> Any:
        """As if the word came at a rate that depends on the place alone."""
        t, vocabulary = prefix.shape[-1], stream.vocabulary_size
        miss = np.log1p(-rate[t + 1 :]).sum()
        later = math.log(-math.expm1(miss)) if miss < 0 else -math.inf
        out = torch.full((*prefix.shape[:2], vocabulary), later)
        out[..., list(stream.eos)] = -math.inf  # it ends without the word
        out[..., token] = 0.0
        done = (prefix == token).any(-1)[..., None] if t else torch.zeros(1, dtype=torch.bool)
        return torch.where(done, torch.zeros(()), out)

    task = f"{LEXICAL!r} by SmolLM2-135M"
    draw = lambda n: samplers.smc(torch_source(target, seed=1), n, twist=samplers.next_twist(ahead))
    return [row(task, probability, "SMC, twist of rates by place", 64, draw)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without SmolLM2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = letters() + tiny(quick=options.quick)
    if not options.quick:
        rows += smollm2()
    if options.json:
        print(json.dumps(rows))
        return
    for r in rows:
        print(
            f"{r['task']:<28} {r['method']:<28} n {r['n']:>6}  ESS/n {r['ess_share']:7.4f}  "
            f"calls/effective draw {r['calls_per_effective']:9.1f}  "
            f"{r['times_fewer_than_rejection']:8.1f}x fewer  log Z {r['log_z']:8.3f} "
            f"(log P {r['log_p']:.3f})  {r['seconds']:5.1f} s"
        )


if __name__ == "__main__":
    main()
