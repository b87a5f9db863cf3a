"""Records of a base and an adapter with known differences, and the verdicts on them."""

import numpy as np

from tasks.forgetting.verdict import compare


def flips(lost, gained, n):
    """Scores of base and adapter with these flips, half of the others right; the adapter's records in another order."""
    same = {f"d{i}": float(i % 2) for i in range(n)}
    base = same | {f"d{i}": float(i < lost) for i in range(lost + gained)}
    adapter = {f"d{i}": float(i >= lost) if i < lost + gained else same[f"d{i}"] for i in reversed(range(n))}
    return {"base": base, "adapter": adapter}


def losses(rise, n=400, noise=0.05):
    rng = np.random.default_rng(1)
    base = rng.normal(2, 0.3, n)
    moved = rng.normal(0, noise, n)
    adapter = base + moved - moved.mean() + rise
    return {side: {f"d{i}": v for i, v in enumerate(s)} for side, s in (("base", base), ("adapter", adapter))}


def binary(lost, gained, n, margin=0.05, role="general", task="arc", **more):
    return compare(task=task, role=role, metric="acc", margin=margin, **flips(lost, gained, n), **more)


def nll(rise, margin=0.01, role="general", n=400, metric="nll_per_token"):
    return compare(task="wiki", role=role, metric=metric, margin=margin, higher_is_better=False, **losses(rise, n=n))
