"""Markov chains by brute force: every path of states. No infer_align inside."""

import itertools

import numpy as np

M1 = ([0.5, 0.25, 0.25], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
BIGRAMS = [[0, 0.2, 1], [0.5, 0, -0.3], [-0.2, 0.7, 0]]
HOLES = ([0.7, 0.3, 0.0], [[0.5, 0.5, 0.0], [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]])
"""State 2 never repeats and never comes first; 0 is not followed by 2, nor 1 by 0."""


def paths(initial, transition, rewards, length, first=None):
    """All paths (n, m), their probabilities and rewards, in plain NumPy."""
    initial, transition = np.array(initial, dtype=float), np.array(transition, dtype=float)
    states = len(initial)
    table = rewards.values() if hasattr(rewards, "values") else np.array(rewards, dtype=float)
    if table.shape == (states,):
        first, table = table, np.tile(table, (states, 1))
    first = np.zeros(states) if first is None else np.array(first, dtype=float)
    y = np.indices((states,) * length).reshape(length, -1).T
    p, r = initial[y[:, 0]], first[y[:, 0]]
    for a, b in itertools.pairwise(y.T):
        p, r = p * transition[a, b], r + table[a, b]
    return y, p, r


def levels(p, r):
    """Rewards that occur, their probabilities given that p occurs, and each path's level."""
    found, index = np.unique(np.round(r[p > 0], 9), return_inverse=True)
    mass = np.bincount(index, weights=p[p > 0]) / p.sum()
    return found, mass, index
