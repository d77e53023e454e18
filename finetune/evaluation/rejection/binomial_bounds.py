"""Exact bounds of a proportion and of the rate beyond a threshold, for one-sided statements."""


def compute_lower_bound(num_correct: int, total: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of a proportion in [0, 1] (Clopper and Pearson 1934).

    Args:
        num_correct: Number of successes, in [0, total].
        total: Number of trials; 0 has the bound 0.
        confidence: Probability with which the proportion is at least the bound.
    """
    from scipy.special import betaincinv

    if num_correct == 0:
        return 0.0
    return float(betaincinv(num_correct, total - num_correct + 1, 1 - confidence))


def compute_tail_interval(
    rank: int, total: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval of the rate of new values above a value of a sample.

    The rate of values above the ``rank``-th largest of ``total`` independent values of a continuous
    distribution has the distribution Beta(rank, total + 1 - rank), whatever the distribution of the
    values is; see Vovk 2012 (https://proceedings.mlr.press/v25/vovk12.html), proposition 2.

    Args:
        rank: Which of the largest values, from 1.
        total: Size of the sample.
        confidence: Probability that the interval has the rate.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low, high = (
        float(betaincinv(rank, total + 1 - rank, quantile)) for quantile in (tail, 1 - tail)
    )
    return low, high
