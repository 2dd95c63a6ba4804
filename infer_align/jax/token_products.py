"""Products of memoryless and Markov policies token by token."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["token_product"]


def token_product(params: Sequence[Any], weights: Sequence[float | int]) -> Any:
    r"""Parameters of the product of policies token by token, which is of the same family.

    .. math:: p(b | a) \propto \prod_i p_i(b | a)^{w_i}

    What ``infer_align.torch.TokenProduct`` is for language models: next-token teachers and
    contrastive decoding. It is not the sequence-level product (``product``,
    ``geometric_mixture``), except for memoryless policies without EOS.

    Parameters
    ----------
    params : sequence of arrays or mappings
        Of each policy: logits (*contexts, V) of `memoryless`, or ``initial`` and ``transition`` of
        `markov`. Where some are Markov, the others are made so.
    weights : sequence of float
        w_i, finite; may be negative where no probability is 0.

    Returns
    -------
    array or dict of arrays
        Unnormalised logits, for `memoryless` or `markov`.

    Raises
    ------
    ValueError
        For another number of weights than policies, or weights that are not finite or all 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from infer_align.jax import memoryless, token_product
    >>> a, b = jnp.log(jnp.array([0.8, 0.2])), jnp.log(jnp.array([0.5, 0.5]))
    >>> sharp = memoryless(token_product([a, b], [2.0, -1.0]), length=1)
    >>> [round(float(p), 4) for p in jnp.exp(sharp.log_prob(jnp.array([[0], [1]])))]
    [0.9412, 0.0588]
    """
    if not params or len(params) != len(weights):
        raise ValueError(
            f"a token product needs a weight for each policy, got {len(params)} policies and "
            f"{len(weights)} weights"
        )
    if not np.isfinite(list(weights)).all() or not any(weights):
        raise ValueError(
            f"the weights of a token product must be finite and not all 0, got {list(weights)}"
        )
    chains = any(isinstance(p, Mapping) for p in params)
    alike = [_as_chain(p) if chains else jnp.asarray(p) for p in params]
    # A weight of 0 leaves its policy out, -inf logits and all.
    kept = [(p, w) for p, w in zip(alike, weights, strict=True) if w]
    scaled = [jax.tree.map(lambda x, w=w: w * jax.nn.log_softmax(x), p) for p, w in kept]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]), *scaled)


def _as_chain(params: Any) -> dict[str, Any]:
    if isinstance(params, Mapping):
        return {k: jnp.asarray(params[k]) for k in ("initial", "transition")}
    logits = jnp.asarray(params)
    size = logits.shape[-1]
    same = jnp.broadcast_to(logits[..., None, :], (*logits.shape[:-1], size, size))
    return {"initial": logits, "transition": same}
