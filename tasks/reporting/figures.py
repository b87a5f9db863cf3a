"""How figures and verdicts are written: scores between 0 and 1 as per cent, differences as points, losses in nats."""

VERDICT_COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def is_fraction(metric: str) -> bool:
    return metric != "nll_per_token"


def score(value: float, fraction: bool) -> str:
    return f"{100 * value:.1f} %" if fraction else f"{value:.3f}"


def change(value: float, fraction: bool) -> str:
    """A difference: in points (hundredths) of fractions, in nats of log-likelihoods."""
    return f"{100 * value:+.1f}" if fraction else f"{value:+.3f}"


def interval(low: float, high: float, fraction: bool) -> str:
    return f"{change(low, fraction)} to {change(high, fraction)}"


def confidence(alpha: float) -> str:
    """Of the intervals that belong to one-sided tests at `alpha`."""
    return f"{100 * (1 - 2 * alpha):.4g} %"
