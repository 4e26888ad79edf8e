"""Choose the few sizes for which a step is captured. A part of a batch is filled up to the next one."""

from collections.abc import Sequence

import numpy as np

MAX_SIZES = 8
LEAST_SAVING = 0.02  # another size must save this share of all tokens: a capture takes as long as some 20 steps


def choose_sizes(sizes: Sequence[int] | np.ndarray) -> list[int]:
    """At most `MAX_SIZES` of the given sizes such that filling up to them adds the fewest tokens.

    Args:
        sizes: of all parts, in any order.

    Returns:
        ascending; the last one is the largest of `sizes`.
    """
    values, counts = np.unique(np.asarray(sizes), return_counts=True)
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
        if best[-1] - more[-1] < LEAST_SAVING * best[-1]:
            break
        best = more
        choices.append(starts)
    chosen, last = [], len(values) - 1
    for starts in reversed(choices):
        chosen.append(int(values[last]))
        last = int(starts[last]) - 1
    return chosen[::-1]
