"""Documents in groups: fixed vectors, the variance against statsmodels, and that groups never make a claim easier."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tasks.forgetting import clustered, continuous, tango
from tasks.forgetting.verdict import compare


def example(count, size):
    i = np.arange(count * size)
    groups = i // size
    lost, gained = (groups % 9 == 2) & (i % size < 2), (groups % 11 == 5) & (i % size < 2)
    drops = np.select([lost, gained, i % 53 == 7, i % 47 == 11], [1.0, -1.0, 1.0, -1.0])
    return drops, groups


def judged(drops, groups, *, margin=0.05, graded=False, names=str, **more):
    base = {f"d{i}": (0.3 + 0.001 * (i % 7) if graded else max(d, i % 2 * (d == 0))) for i, d in enumerate(drops)}
    adapter = {key: score - d for (key, score), d in zip(base.items(), drops, strict=True)}
    clusters = {f"d{i}": names(g) for i, g in enumerate(groups)}
    return compare(
        task="drop", role="general", metric="acc", base=base, adapter=adapter, margin=margin, clusters=clusters, **more
    )


VECTORS = [
    (30, 5, 0.05, 11, 8, 0.03632548, 1.567564, -0.802144, 0.214497),
    (60, 5, 0.03, 20, 13, 0.02381267, 1.554174, -0.278379, 0.390848),
]


@pytest.mark.parametrize(("count", "size", "margin", "lost", "gained", "error", "deff", "z", "p"), VECTORS)
def test_vectors(count, size, margin, lost, gained, error, deff, z, p):
    drops, groups = example(count, size)
    found = clustered.grouping(drops, groups)
    assert (found.clusters, (drops > 0).sum(), (drops < 0).sum()) == (count, lost, gained)
    assert found.error == pytest.approx(error, abs=6e-9)
    assert found.design_effect == pytest.approx(deff, abs=6e-7)
    assert float(tango.score(lost / deff, gained / deff, len(drops) / deff, margin)) == pytest.approx(z, abs=1e-6)
    assert clustered.p_right_wrong(drops, groups, margin) == pytest.approx(p, abs=6e-7)
    got = judged(drops, groups, margin=margin)
    assert got.p_breach == clustered.p_right_wrong(-drops, groups, -margin) >= 1 - p
    assert (got.p_value, got.clusters) == (pytest.approx(p, abs=6e-7), count)
    assert f"of {len(drops)} documents in {count} groups (design effect {deff:.2f})" in got.reason


def by_hand(drops, groups):
    """The cluster-robust error written as loops, from its definition."""
    mean, names = sum(drops) / len(drops), sorted(set(groups))
    total = sum(sum(d - mean for d, g in zip(drops, groups, strict=True) if g == name) ** 2 for name in names)
    return (len(names) / (len(names) - 1) * total) ** 0.5 / len(drops)


def totals(drops, groups):
    """One number a group, from the definition: the mean, and what the group adds to it, as if all were as large."""
    count, mean = len(set(groups)), drops.mean()
    return np.array([mean + (drops[groups == g] - mean).sum() * count / len(drops) for g in range(count)])


def test_graded_scores_by_hand():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 4)
    drops = rng.normal(0, 1, 40)[groups] * 0.1 + rng.normal(0, 0.02, 160)
    t = (drops.mean() - 0.03) / by_hand(drops, groups)
    p = max(stats.t.cdf(t, 39), continuous.p_hall(totals(drops, groups), 0.03))
    assert clustered.p_graded(drops, groups, 0.03) == pytest.approx(p, rel=1e-9)
    half = stats.t.ppf(0.95, 39) * by_hand(drops, groups)
    bounds = clustered.interval_graded(drops, groups, 0.05)
    assert bounds == pytest.approx((drops.mean() - half, drops.mean() + half), rel=1e-9)
    got = judged(drops, groups, margin=0.03, graded=True)
    assert (got.p_value, got.clusters) == (pytest.approx(p, rel=1e-6), 40)
    p = max(stats.t.sf(t, 39), continuous.p_hall(-totals(drops, groups), -0.03), continuous.p_breach(drops, 0.03))
    assert got.p_breach == pytest.approx(p, rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 35), st.booleans(), st.sampled_from([-0.05, 0.0, 0.02, 0.05]))
@settings(max_examples=80, deadline=None)
def test_groups_never_make_a_claim_easier(seed, count, right_wrong, margin):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(count), rng.integers(0, count, 70)])
    if right_wrong:
        drops = rng.choice([-1.0, 0.0, 1.0], len(groups), p=[0.04, 0.9, 0.06])
        lost, gained, n = int((drops > 0).sum()), int((drops < 0).sum()), len(drops)
        assert clustered.p_right_wrong(drops, groups, margin) >= tango.p_non_inferior(lost, gained, n, margin)
        low, high = clustered.interval_right_wrong(drops, groups, 0.05)
        narrow = tango.interval(lost, gained, n, 0.05)
    else:
        drops = rng.exponential(0.1, len(groups))
        assert clustered.p_graded(drops, groups, margin) >= continuous.p_non_inferior(drops, margin)
        low, high = clustered.interval_graded(drops, groups, 0.05)
        narrow = continuous.interval(drops, 0.05)
    assert low <= narrow[0] + 1e-12 and narrow[1] - 1e-12 <= high


def test_balanced_groups_are_no_certainty():
    """A loss and a gain in each group cancel: the groups' own variance is 0, that of the documents is not."""
    drops, groups = np.tile([1.0, -1.0, 0.0, 0.0], 40), np.repeat(np.arange(40), 4)
    assert by_hand(drops, groups) == 0
    assert clustered.grouping(drops, groups).design_effect == 1
    assert clustered.p_right_wrong(drops, groups, 0.05) >= tango.p_exact(40, 40, 160, 0.05) > 0.05
    assert clustered.p_graded(drops, groups, 0.05) >= continuous.p_non_inferior(drops, 0.05) > 0.05


@pytest.mark.parametrize(("count", "verdict"), [(58, "INCONCLUSIVE"), (59, "PASS")])
def test_groups_without_a_flip_are_as_many_flawless_documents(count, verdict):
    got = judged(np.zeros(10 * count), np.repeat(np.arange(count), 10))
    assert (got.verdict, got.design_effect, got.needed) == (verdict, 10, 590)
    assert got.p_value == pytest.approx(0.95**count)
    assert got.ci_low < -0.04 and got.ci_high > 0.04
    graded = judged(np.full(10 * count, 0.01), np.repeat(np.arange(count), 10), graded=True)
    assert graded.p_value == pytest.approx(0.96**count, rel=1e-6)
    assert graded.ci_low < -0.02


@pytest.mark.parametrize("graded", [False, True])
def test_few_groups_decide_nothing(graded):
    drops, groups = np.zeros(2900), np.repeat(np.arange(29), 100)
    drops[::50] = -1.0 if not graded else -0.5
    got = judged(drops, groups, margin=0.2, graded=graded)
    assert got.p_value < 0.01
    assert got.verdict == "INCONCLUSIVE"
    assert "in 29 groups (design effect 1.00); 29 groups of documents are too few for a verdict" in got.reason
    assert got.reason.endswith("at least 30; at these rates about 3,000 documents would settle it")
    assert judged(np.append(drops, 0), np.append(groups, 29), margin=0.2, graded=graded).verdict == "PASS"
    alone = judged(drops, np.zeros(2900, dtype=int), margin=0.2, graded=graded)
    assert (alone.clusters, alone.verdict) == (1, "INCONCLUSIVE")


def test_the_names_and_the_order_of_groups_do_not_matter():
    drops, groups = example(30, 5)
    assert judged(drops, groups) == judged(drops, groups, names=lambda g: f"passage {97 * g % 30}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "size", "margin", "together", "alone", "scaled", "rule"),
    [
        (30, 20, 0.02, 0.3, 0.31, 0.15, 0.05),
        (30, 20, 0.05, 0.1, 0.14, 0.07, 0.05),
        (30, 20, 0.02, 0.7, 0.46, 0.12, 0.063),  # a known limit
        (60, 5, 0.05, 0.3, 0.104, 0.06, 0.036),
    ],
)
def test_false_passes_of_documents_that_fall_together(count, size, margin, together, alone, scaled, rule):
    """Each group has its own rate of loss, on average the margin; `together` is the correlation within a group."""
    rng, draws = np.random.default_rng(11), 3000
    scale = (1 - together) / together
    rates = rng.beta(margin * scale, (1 - margin) * scale, (draws, count))
    groups, place = np.repeat(np.arange(count), size), np.arange(size)
    passed = np.zeros((draws, 3), dtype=bool)
    p_alone = [tango.p_non_inferior(lost, 0, count * size, margin) for lost in range(count * size // 4)]
    for draw, lost in enumerate(rng.binomial(size, rates)):
        total = int(lost.sum())
        if total >= margin * count * size:  # nothing that lost this many passes by any rule
            continue
        drops = (place < lost[:, None]).astype(float).ravel()
        deff = clustered.grouping(drops, groups).design_effect
        z = tango.score(total / deff, 0, count * size / deff, margin)
        by_scale = max(p_alone[total], stats.t.cdf(z, count - 1))
        by_rule = max(by_scale, continuous.p_non_inferior(totals(drops, groups), margin))
        passed[draw] = np.array([p_alone[total], by_scale, by_rule]) <= 0.05
        if draw < 20:
            assert clustered.p_right_wrong(drops, groups, margin) == pytest.approx(by_rule)
    assert passed.mean(axis=0) == pytest.approx([alone, scaled, rule], abs=0.015)
