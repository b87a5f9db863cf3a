"""Puts a task's verdict into one plain sentence: what was seen, what follows for the margin, what is missing."""

from typing import Literal

from tasks.forgetting.evidence import Evidence


def explain(
    evidence: Evidence,
    *,
    seen: str,
    role: Literal["target", "general"],
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"],
    change: str,
    size: str,
    n: int,
) -> str:
    """The sentence for one task of `n` documents; `change` names the direction of its margin, `size` its amount."""
    p_pass, p_fail = f"(p {_p(evidence.p_below)})", f"(p {_p(evidence.p_above)})"
    shown, ruled_out = f"a {change} of more than {size} is shown", f"a {change} of {size} or more is ruled out"
    if verdict == "PASS":
        return f"{seen}; {ruled_out if role == 'general' else shown} {p_pass}"
    if verdict == "FAIL":
        return f"{seen}; {shown if role == 'general' else ruled_out} {p_fail}"
    if evidence.too_few:
        return f"{seen}; {evidence.too_few}; {_missing(evidence.needed, n)}"
    if role == "general":
        return f"{seen}; a {change} of {size} cannot be ruled out {p_pass}; {_missing(evidence.needed, n)}"
    return f"{seen}; a {change} of more than {size} is not shown {p_pass}; {_missing(evidence.needed, n)}"


def _missing(needed: int | None, n: int) -> str:
    if needed is None:
        return "at these rates no number of documents would settle it"
    if needed <= n:  # the plan is a normal approximation, the test is not
        return "somewhat more documents would settle it"
    return f"at these rates about {needed:,} documents would settle it"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
