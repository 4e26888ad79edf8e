"""Choose the few sizes for which a step is captured. A part of a batch is filled up to the next one."""

from collections.abc import Sequence

import numpy as np

MAX_SIZES, MAX_CANDIDATES = 8, 256
# Tokens that another size must save in the whole training. With phi-2 on an H200, a capture and the eager run before it
# take half a second, in which a training computes 20,000 tokens. Half as many, because most trainings are repeated.
LEAST_SAVING = 10_000


def choose_sizes(sizes: Sequence[int] | np.ndarray, tokens_a_unit: int = 1) -> list[int]:
    """At most `MAX_SIZES` of the given sizes such that filling up to them adds the fewest tokens.

    Args:
        sizes: of all parts of the training, in any order.
        tokens_a_unit: tokens of a part of size 1: its rows, if sizes are lengths.

    Returns:
        ascending; the last one is the largest of `sizes`.
    """
    values, inverse = np.unique(np.asarray(sizes), return_inverse=True)
    if len(values) > MAX_CANDIDATES:  # the search takes quadratic time
        candidates = values[np.linspace(0, len(values) - 1, MAX_CANDIDATES).astype(int)]
        inverse, values = np.searchsorted(candidates, values)[inverse], candidates
    counts = np.bincount(inverse, minlength=len(values))
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: tokens of the parts with values[i] to values[j], filled up to values[j].
    cost = np.where(
        np.arange(len(values))[:, None] <= np.arange(len(values))[None, :],
        values[None, :] * (total[None, 1:] - total[:-1, None]),
        np.inf,
    )
    best, choices = cost[0], [np.zeros(len(values), dtype=np.int64)]  # best[j]: of values[0] to values[j]
    for _ in range(min(MAX_SIZES, len(values)) - 1):
        with_one_more = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        more, starts = with_one_more.min(axis=0), with_one_more.argmin(axis=0)
        if best[-1] - more[-1] < LEAST_SAVING / tokens_a_unit:
            break
        best = more
        choices.append(starts)
    chosen, last = [], len(values) - 1
    for starts in reversed(choices):
        chosen.append(int(values[last]))
        last = int(starts[last]) - 1
    return chosen[::-1]
