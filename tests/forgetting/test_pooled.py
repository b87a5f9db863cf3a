"""The general tasks together: the fixed vector, a second implementation, and which tasks are counted."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import norm

from tasks.forgetting.pooled import pool, score
from tasks.forgetting.tango import p_non_inferior
from tests.forgetting.records import binary, nll
from tests.forgetting.test_clustered import example, judged

COUNTS = [(3, 2, 100), (8, 7, 300), (15, 14, 300), (6, 8, 200), (30, 28, 500), (25, 27, 1000)]


def pooled_z(counts, margin):
    """The same from the likelihood itself: each task's share of gained documents by numerical maximisation."""
    excess = variance = 0.0
    for lost, gained, n in counts:

        def unlikely(q, lost=lost, gained=gained, n=n):
            return -(xlogy(lost, q + margin) + xlogy(gained, q) + xlogy(n - lost - gained, 1 - 2 * q - margin))

        span = (max(0.0, -margin), (1 - margin) / 2)
        q = minimize_scalar(unlikely, bounds=span, method="bounded", options={"xatol": 1e-12}).x
        q = min([q, *span], key=unlikely)
        excess += ((lost - gained) / n - margin) / len(counts)
        variance += (2 * q + margin - margin**2) / n / len(counts) ** 2
    return excess / variance**0.5


def test_vector():
    found = pool([binary(*one, task=f"t{i}") for i, one in enumerate(COUNTS)], 0.02, 0.05)
    assert (found.n_tasks, found.margin) == (6, 0.02)
    assert found.z == pytest.approx(-2.680155, abs=6e-7)
    assert found.p_value == pytest.approx(0.003679, abs=6e-7)
    assert found.drop == pytest.approx(np.mean([(b - c) / n for b, c, n in COUNTS]))
    for bound, z in ((found.ci_low, norm.isf(0.05)), (found.ci_high, norm.ppf(0.05))):
        assert pooled_z(COUNTS, bound) == pytest.approx(z, abs=1e-5)
    assert found.told(0.05) == (
        "the drop over 6 general tasks is 0.144 points on average; one of 2 points or more is ruled out (p = 0.004)"
    )
    assert "or more cannot be ruled out" in found.told(0.001)
    assert found.model_copy(update={"drop": -0.018}).told(0.05) == (
        "over 6 general tasks the average rose by 1.8 points; a drop of 2 points or more is ruled out (p = 0.004)"
    )


@pytest.mark.parametrize("margin", [-0.03, 0.005, 0.02, 0.1])
def test_two_implementations_agree(margin):
    rng = np.random.default_rng(5)
    for _ in range(20):
        counts = [(*map(int, rng.multinomial(n, [0.06, 0.04, 0.9])[:2]), int(n)) for n in rng.integers(40, 900, 4)]
        assert score(counts, margin) == pytest.approx(pooled_z(counts, margin), abs=1e-4)


def test_one_task_alone_is_tangos_score():
    found = pool([binary(3, 1, 100, tier="supporting")], 0.05, 0.05)
    assert found.z == pytest.approx(-1.218020, abs=6e-7)


def test_a_small_task_is_not_drowned():
    """12 points lost on 300 documents: summed over all documents that is 0.4 points."""
    counts = [(45, 9, 300), *[(90, 90, 3000)] * 3]
    found = pool([binary(*one) for one in counts], 0.02, 0.05)
    assert found.drop == pytest.approx(0.03)
    assert found.p_value > 0.9


def test_tasks_without_flips_are_not_certain():
    few = pool([binary(0, 0, 10)] * 3, 0.02, 0.05)
    assert few.p_value == pytest.approx(float(norm.cdf(-((30 * 0.02 / 0.98) ** 0.5))))
    assert few.ci_low < -0.05 and few.ci_high > 0.05
    assert pool([binary(0, 0, 100)] * 3, 0.02, 0.05).p_value < 0.05


def test_groups_count_as_fewer_documents():
    drops, groups = example(30, 5)
    grouped = judged(drops, groups)
    deff, task = grouped.design_effect, binary(8, 7, 300)
    found = pool([grouped, task], 0.05, 0.05)
    assert found.z == pytest.approx(pooled_z([(11 / deff, 8 / deff, 150 / deff), (8, 7, 300)], 0.05), abs=1e-5)
    assert abs(found.z) < abs(pooled_z([(11, 8, 150), (8, 7, 300)], 0.05))


def test_who_is_counted():
    kept = [binary(1, 1, 200), binary(2, 2, 200, tier="supporting")]
    left_out = [
        binary(40, 0, 200, tier="advisory"),
        binary(40, 0, 200, decides=False),
        binary(0, 40, 200, role="target"),
        nll(0.001),
        binary(0, 9, 200, margin=0.6),  # the base has too little right to lose that much
    ]
    assert left_out[-1].vote is False
    assert pool(kept + left_out, 0.02, 0.05) == pool(kept, 0.02, 0.05)
    assert pool(left_out, 0.02, 0.05) is None
    assert pool(kept[:1], 0.02, 0.05) is None  # one critical task decides by itself, at its own margin
    assert pool(kept[1:], 0.02, 0.05).n_tasks == 1


def test_a_single_supporting_task_is_held_to_its_exact_test():
    """133 documents without a flip: the normal score says p = .0497 of a 2 point margin, the exact one .068."""
    alone = pool([binary(0, 0, 133, task="t", tier="supporting")], 0.02, 0.05)
    assert norm.cdf(alone.z) < 0.05 < alone.p_value
    assert alone.p_value == pytest.approx(p_non_inferior(0, 0, 133, 0.02))
