"""Which scales of an adapter are tried, and which of them is kept: pure logic, no model.

All scales of the recipe first, in one call, because they are scored beside each other on one base. Then bisection
between the largest that passes and the next larger that does not; the whole adapter, scale 1, is known not to pass.
Nothing rests on passing being monotone: small scales fail because they learn too little, large ones because they
forget. What is kept has itself passed.
"""

from collections.abc import Callable, Mapping, Sequence

DIGITS = 3  # of a scale found by bisection
WHOLE = 1.0

TryMany = Callable[[list[float]], Mapping[float, bool]]  # scales -> whether each passes every gate and still learns


def cure_scales(scales: Sequence[float], refine: int, try_many: TryMany) -> tuple[float | None, list[float]]:
    """(the largest scale that passed, or None; all that were tried, in their order)."""
    tried = sorted(set(scales), reverse=True)
    passed = dict(try_many(list(tried)))
    best = max((scale for scale in tried if passed[scale]), default=None)
    if best is None:
        return None, tried
    too_large = min((scale for scale in tried if scale > best), default=WHOLE)
    for _ in range(refine):
        middle = round((best + too_large) / 2, DIGITS)
        if not best < middle < too_large:  # nothing between them has so few digits
            break
        tried.append(middle)
        if try_many([middle])[middle]:
            best = middle
        else:
            too_large = middle
    return best, tried


def planned(scales: Sequence[float], refine: int, replay: bool) -> int:
    """How many candidates there could be: what alpha is divided by (Bonferroni), fixed before any of them is seen.

    Which scales bisection comes to is decided by the documents that judge them, so all count that it could come to: in
    each of the intervals above a scale, 2^refine - 1. The retrained adapter is one more.
    """
    return len(set(scales)) * 2**refine + int(replay)
