"""What a plan says of a gate: the documents of the literature, the inverse of it, and what no figure is made up for."""

import itertools

import pytest

from tasks.forgetting.sample_size import documents_needed
from tasks.forgetting.tango import score
from tasks.planning.power import (
    needed_graded,
    needed_pooled,
    needed_right_wrong,
    smallest_drop,
    smallest_drop_graded,
    smallest_gain,
    smallest_pooled_drop,
)


@pytest.mark.parametrize(("margin", "about"), [(0.01, 6200), (0.02, 1570), (0.03, 705), (0.05, 263)])
def test_the_figures_that_are_known_for_ten_per_cent_disagreement(margin: float, about: int) -> None:
    assert about <= needed_right_wrong(margin, 0.10, 0.05) <= 1.05 * about


def test_without_a_flip_a_task_still_needs_its_fewest() -> None:
    assert needed_right_wrong(0.05, 0.0, 0.05) == 59


@pytest.mark.parametrize("disagreement", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("documents", [12, 180, 194, 448, 10_000])
def test_the_smallest_drop_is_the_margin_that_needs_just_these_documents(documents: int, disagreement: float) -> None:
    drop = smallest_drop(documents, disagreement, 0.05)
    assert drop is not None
    assert needed_right_wrong(drop, disagreement, 0.05) <= documents
    assert needed_right_wrong(0.995 * drop, disagreement, 0.05) > documents


def test_more_documents_show_less_and_more_flips_hide_more() -> None:
    drops = [smallest_drop(n, 0.1, 0.05) or 1 for n in (50, 100, 200, 400)]
    hidden = [smallest_drop(200, rate, 0.05) or 1 for rate in (0.02, 0.1, 0.3)]
    assert drops == sorted(drops, reverse=True) and hidden == sorted(hidden)
    assert (smallest_drop(200, 0.1, 0.025) or 0) > (smallest_drop(200, 0.1, 0.05) or 1)


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.5])
def test_the_smallest_gain_lies_above_the_wanted_one(wanted: float) -> None:
    gains = [smallest_gain(n, wanted, 0.1, 0.05) for n in (40, 100, 1000)]
    assert all(gain is not None and wanted < gain < 1 for gain in gains)
    assert all((a or 0) > (b or 1) for a, b in itertools.pairwise(gains))
    assert smallest_gain(1, wanted, 0.1, 0.05) is None
    gain = gains[1] or 0
    needed = documents_needed(-wanted, max(0.1, gain), drop=-gain, alpha=0.05)
    assert needed is not None and 95 <= needed <= 100


def test_of_one_task_the_pool_is_the_task() -> None:
    for disagreement in (0.05, 0.1):
        pooled, single = needed_pooled(0.05, [(100, disagreement)], 0.05), documents_needed(0.05, disagreement)
        assert single is not None and abs(pooled - single) <= 1


def test_the_pool_averages_tasks_of_any_size() -> None:
    alike = [(200, 0.1)] * 4
    assert needed_pooled(0.02, alike, 0.05) == pytest.approx(documents_needed(0.02, 0.1) or 0, abs=2)
    unlike = [(40, 0.1), (760, 0.1)]
    assert needed_pooled(0.02, unlike, 0.05) > needed_pooled(0.02, [(400, 0.1)] * 2, 0.05)
    drop = smallest_pooled_drop(alike, 0.05)
    assert drop is not None and needed_pooled(drop, alike, 0.05) <= 800 < needed_pooled(0.99 * drop, alike, 0.05)


def test_at_the_planned_number_four_of_five_harmless_adapters_pass() -> None:
    """Draw adapters that flip ten per cent of the documents, as often one way as the other."""
    import numpy as np

    n = needed_right_wrong(0.03, 0.1, 0.05)
    rng = np.random.default_rng(0)
    flips = rng.multinomial(n, [0.05, 0.05, 0.9], size=2000)
    passed = np.mean([score(lost, gained, n, 0.03) <= -1.6449 for lost, gained, _ in flips])
    assert 0.77 < passed < 0.84


def test_graded_scores_need_their_spread_and_a_hundred_documents() -> None:
    assert needed_graded(0.05, 0.02, 0.05) == 100
    assert needed_graded(0.05, 0.5, 0.05) == pytest.approx(((1.6449 + 0.8416) * 0.5 / 0.05) ** 2, abs=1.5)
    assert smallest_drop_graded(99, 0.5, 0.05) is None
    drop = smallest_drop_graded(400, 0.5, 0.05)
    assert drop == pytest.approx((1.6449 + 0.8416) * 0.5 / 20, rel=1e-3)
