"""Puts a task's verdict into one plain sentence: what was seen, what follows for the margin, what is missing."""

from tasks.forgetting.outcome import Role, TaskVerdict

# The direction in which a task's margin is measured, by role and by whether a higher score is better.
_CHANGE: dict[tuple[Role, bool], str] = {
    ("general", True): "drop",
    ("general", False): "rise",
    ("target", True): "gain",
    ("target", False): "fall",
}


def explain(found: TaskVerdict, among: tuple[int, int] = (1, 1)) -> str:
    """The sentence for one task; `among` says over how many claims of PASS and of FAIL p was adjusted."""
    change, general = _CHANGE[found.role, found.higher_is_better], found.role == "general"
    beyond = "" if general else f" {'over' if found.higher_is_better else 'below'} {found.over}"
    shown = f"a {change} of more than {size(found, found.margin)}{beyond} is shown"
    ruled_out = f"a {change} of {size(found, found.margin)} or more{beyond} is ruled out"
    p_pass = _p(found.p_value, found.p_value_adjusted, among[0])
    p_fail = _p(found.p_breach, found.p_breach_adjusted, among[1])
    if found.verdict == "PASS":
        return f"{_seen(found)}; {ruled_out if general else shown} {p_pass}"
    if found.verdict == "FAIL":
        return f"{_seen(found)}; {shown if general else ruled_out} {p_fail}"
    if found.note and not found.too_few:
        return f"{_seen(found)}; {found.note}"
    missing = found.too_few or (
        f"a {change} of {size(found, found.margin)} cannot be ruled out {p_pass}"
        if general
        else f"a {change} of more than {size(found, found.margin)}{beyond} is not shown {p_pass}"
    )
    return f"{_seen(found)}; {missing}; {_missing(found.needed, found.n)}"


def size(found: TaskVerdict, amount: float) -> str:
    """An amount of change in the task's own measure."""
    return points(amount) if found.kind == "right/wrong" else f"{amount:.3g}"


def points(share: float) -> str:
    """A share of documents, 0 to 1, as one says it."""
    return f"{100 * share:.3g} points"


def p(value: float) -> str:
    """A p-value as one writes it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _seen(found: TaskVerdict) -> str:
    groups = "" if found.clusters is None else f" in {found.clusters} groups (design effect {found.design_effect:.2f})"
    if found.kind == "right/wrong":
        return f"lost {found.flips.lost} and gained {found.flips.gained} of {found.n} documents{groups}"
    return f"mean {found.metric} went from {found.base:.4g} to {found.adapter:.4g} over {found.n} documents{groups}"


def _missing(needed: int | None, n: int) -> str:
    if needed is None:
        return "at these rates no number of documents would settle it"
    if needed <= n:  # the plan is a normal approximation for a single claim, the test is not
        return "somewhat more documents would settle it"
    return f"at these rates about {needed:,} documents would settle it"


def _p(value: float, adjusted: float | None, among: int) -> str:
    holm = f"; {p(adjusted)} after Holm over {among} tests" if adjusted is not None and among > 1 else ""
    return f"({p(value)}{holm})"
