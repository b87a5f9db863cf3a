"""How often a task passes whose true drop *is* the margin: at most alpha, where the usual rules pass far more.

By enumeration for right/wrong scores (docs/STATISTICS.md quotes these figures), by simulation for whole verdicts.
"""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from tasks.forgetting import continuous, tango
from tests.forgetting.records import binary

Z = 1.6448536269514722

# documents, margin, share that flips; false passes in % by Wald's interval, by Tango's score, by the exact rule
SIZES = [
    (40, 0.02, 0.05, 24.2, 3.1, 0.6),
    (100, 0.05, 0.05, 11.8, 3.7, 3.7),
    (300, 0.05, 0.05, 6.5, 3.4, 3.4),
    (1000, 0.02, 0.10, 5.2, 4.9, 4.9),
]


def exact_critical_score(scores, n, margin, alpha=0.05):
    """The largest score that the exact rule passes at `alpha`, by bisection over the distinct scores."""
    distinct, first = np.unique(np.round(scores[scores < -1.3], 9), return_index=True)
    cells = np.argwhere(scores < -1.3)[first]
    passed, failed = -1, len(distinct)
    while failed - passed > 1:
        middle = (passed + failed) // 2
        gained, lost = map(int, cells[middle])
        if tango.p_exact(lost, gained, n, margin) <= alpha:
            passed = middle
        else:
            failed = middle
    return distinct[passed] + 1e-8 if passed >= 0 else -np.inf


def probability(passes, n, gain_rate, drop):
    """Of a region over (gained, lost), each 0..n."""
    gained = np.arange(n + 1)
    lost = binom.pmf(gained, n - gained[:, None], (gain_rate + drop) / (1 - gain_rate))
    return (binom.pmf(gained, n, gain_rate) * np.where(passes, lost, 0).sum(axis=1)).sum()


@pytest.mark.parametrize(("n", "margin", "flips", "wald", "score", "exact"), SIZES)
def test_false_passes_by_enumeration(n, margin, flips, wald, score, exact):
    gained, lost = np.indices((n + 1, n + 1))
    possible = lost + gained <= n
    scores = np.where(possible, tango.score(lost, gained, n, margin), np.inf)
    drop = (lost - gained) / n
    error = np.sqrt(np.maximum((lost + gained) / n - drop**2, 0) / n)
    regions = [
        possible & (drop + Z * error < margin),
        scores <= -Z,
        scores <= exact_critical_score(scores, n, margin),
    ]
    percent = [100 * probability(region, n, (flips - margin) / 2, margin) for region in regions]
    assert percent == pytest.approx([wald, score, exact], abs=0.051)
    assert percent[2] <= 5


@pytest.mark.parametrize(("n", "margin", "flips"), [(60, 0.05, 0.05), (100, 0.05, 0.10), (150, 0.02, 0.04)])
def test_verdicts_at_the_margin_rarely_pass_and_rarely_fail(n, margin, flips):
    share = [(flips + margin) / 2, (flips - margin) / 2, 1 - flips]
    draws = 2000
    drawn = Counter(tuple(counts[:2]) for counts in np.random.default_rng(7).multinomial(n, share, size=draws).tolist())
    decided = Counter()
    for (lost, gained), times in drawn.items():
        decided[binary(lost, gained, n, margin=margin).verdict] += times
    allowed = draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)
    assert decided["PASS"] <= allowed
    assert decided["FAIL"] <= allowed
    assert decided["INCONCLUSIVE"] >= 0.9 * draws - 6 * np.sqrt(draws * 0.05)


@pytest.mark.parametrize(
    ("skewed", "t_is_wrong"),
    [
        (lambda rng, n: rng.normal(size=n), False),
        (lambda rng, n: rng.exponential(size=n) - 1, True),
        (lambda rng, n: (rng.random(n) < 0.05) - 0.05 + 0.02 * rng.normal(size=n), True),
    ],
    ids=["normal", "exponential", "a few fall far"],
)
def test_graded_scores_at_the_margin_rarely_pass(skewed, t_is_wrong):
    rng, draws = np.random.default_rng(8), 2000
    drops = [skewed(rng, 100) for _ in range(draws)]
    allowed = draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)
    assert sum(continuous.p_non_inferior(d, 0.0) <= 0.05 for d in drops) <= allowed
    assert (sum(continuous.p_t(d, 0.0) <= 0.05 for d in drops) > allowed) == t_is_wrong


def test_log_normal_drops_are_a_known_limit():
    rng, draws = np.random.default_rng(9), 3000
    drops = [rng.lognormal(0, 1, 100) - np.exp(0.5) for _ in range(draws)]
    assert sum(continuous.p_non_inferior(d, 0.0) <= 0.05 for d in drops) / draws == pytest.approx(0.08, abs=0.015)
    assert sum(continuous.p_t(d, 0.0) <= 0.05 for d in drops) / draws == pytest.approx(0.12, abs=0.018)


@pytest.mark.parametrize(("margin", "percent"), [(0.005, 7.9), (0.02, 6.3)])
def test_false_fails_beyond_the_exact_test_are_a_known_limit(margin, percent):
    """1500 documents of which a share equal to the margin is lost and none gained."""
    lost = np.arange(1501)
    fails = tango.score(lost, 0, 1500, margin) >= Z
    assert tango.p_breach(int(lost[fails][0]), 0, 1500, margin) <= 0.05
    assert 100 * binom.pmf(lost[fails], 1500, margin).sum() == pytest.approx(percent, abs=0.051)
