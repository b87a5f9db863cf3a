"""How figures are written: scores between 0 and 1 as per cent and their differences as points, losses in nats."""


def is_fraction(metric: str) -> bool:
    return metric != "nll_per_token"


def score(value: float, fraction: bool) -> str:
    return f"{100 * value:.1f} %" if fraction else f"{value:.3f}"


def change(value: float, fraction: bool) -> str:
    """A difference: in points (hundredths) of fractions, in nats of log-likelihoods."""
    return f"{100 * value:+.1f}" if fraction else f"{value:+.3f}"


def interval(low: float, high: float, fraction: bool) -> str:
    return f"{change(low, fraction)} to {change(high, fraction)}"
