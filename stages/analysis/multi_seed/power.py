"""The power of a comparison, and the smallest difference that it can detect."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from stages.analysis.multi_seed.significance import margin_of_error, t_quantile
from stages.analysis.multi_seed.variance import VarianceComponent

TARGET_POWER = 0.8
QUANTILES = 256  # of the seeds' estimated variance; `power` averages over them


def smallest_detectable_difference(components: Sequence[VarianceComponent], confidence: float) -> float:
    """The smallest true difference that is significant in `TARGET_POWER` (80%) of experiments."""
    high = 4 * margin_of_error(components, 1 - confidence) + 4 * math.sqrt(sum(part.variance for part in components))
    return float(brentq(lambda difference: power(difference, components, confidence) - TARGET_POWER, 0, high))


def power(difference: float, components: Sequence[VarianceComponent], confidence: float) -> float:
    """The probability that a true difference is significant, if the components have the true variances.

    The estimate is normally distributed, the seeds' estimated variances have chi-square distributions, and
    `margin_of_error` gives the interval. If the rows' component is 0 and there is one of seeds, this is the power of
    the t test, which the noncentral t distribution gives.

    Args:
        components: none, one or two of seeds, then one of rows.
    """
    standard_error = math.sqrt(sum(part.variance for part in components))
    *seeds, rows = components
    count = QUANTILES if len(seeds) == 1 else math.isqrt(QUANTILES) * 2
    probabilities = (np.arange(count) + 0.5) / count
    estimates = [
        part.variance * chi2.ppf(probabilities, part.degrees_of_freedom) / part.degrees_of_freedom for part in seeds
    ]
    variances = [*np.meshgrid(*estimates), rows.variance]
    quantiles = [t_quantile(1 - confidence, part.degrees_of_freedom) for part in components]
    margin = sum(v * q for v, q in zip(variances, quantiles, strict=True)) / np.sqrt(sum(variances))
    above, below = (difference - margin) / standard_error, (-difference - margin) / standard_error
    return float(np.mean(norm.cdf(above) + norm.cdf(below)))
