"""Fleets with known true drops, thousands of them: what the whole rule promises, counted.

Every draw goes through `compare` and `judge_fleet`; the verdict on a pair of counts is computed once and remembered.
"""

from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from tasks.forgetting import tango
from tasks.forgetting.family import judge_fleet
from tasks.forgetting.looks import levels
from tasks.forgetting.sample_size import documents_needed
from tests.forgetting.records import binary
from tests.forgetting.test_false_pass import exact_critical_score

pytestmark = pytest.mark.slow

ALPHA = 0.05
LEARNED = binary(1, 40, 100, role="target", task="target")  # beyond doubt: the verdict hangs on the general tasks


@pytest.fixture(autouse=True, scope="module")
def _exact_p_values_are_remembered():
    """The same counts come up again and again, at several levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tango, "p_exact", cache(tango.p_exact))
        yield


@cache
def cell(lost, gained, n, margin, alpha=ALPHA):
    return binary(lost, gained, n, margin=margin, alpha=alpha)


def drawn(rng, size, *, n, flips, drop):
    """Lost and gained documents of `size` tasks, shape (*size, 2)."""
    share = [(flips + drop) / 2, (flips - drop) / 2, 1 - flips]
    return rng.multinomial(n, share, size=size)[..., :2].tolist()


def at_most(draws, rate=ALPHA):
    """The largest share that `rate` explains, at three standard errors."""
    return rate + 3 * (rate * (1 - rate) / draws) ** 0.5


@pytest.mark.parametrize(("margin", "flips"), [(0.05, 0.05), (0.05, 0.10)])
def test_as_many_documents_as_planned_decide_four_times_of_five(margin, flips):
    rng, draws = np.random.default_rng(1), 3000
    n = documents_needed(margin, flips)
    passed = [cell(*counts, n, margin).verdict == "PASS" for counts in drawn(rng, draws, n=n, flips=flips, drop=0.0)]
    assert 0.78 <= np.mean(passed) <= 0.87
    n = documents_needed(margin, 3 * margin, drop=2.5 * margin)
    worse = drawn(rng, draws, n=n, flips=3 * margin, drop=2.5 * margin)
    failed = [cell(*counts, n, margin).verdict == "FAIL" for counts in worse]
    assert 0.75 <= np.mean(failed) <= 0.90


def released(rng, drops, *, draws, n=300, flips=0.06, margin=0.05, pool_margin=0.05):
    """Shares of PASS and of FAIL among adapters whose general tasks have these true drops."""
    columns = [drawn(rng, draws, n=n, flips=max(flips, drop), drop=drop) for drop in drops]
    verdicts = [
        judge_fleet(
            {"it": [LEARNED, *(cell(*counts, n, margin) for counts in row)]}, alpha=ALPHA, pool_margin=pool_margin
        )["it"].verdict
        for row in zip(*columns, strict=True)
    ]
    return verdicts.count("PASS") / draws, verdicts.count("FAIL") / draws


def test_an_adapter_at_a_margin_is_rarely_released():
    rng, draws = np.random.default_rng(2), 2000
    one_at_its_margin, failed = released(rng, [0.05, 0, 0, 0, 0, 0], draws=draws)
    assert 0.02 < one_at_its_margin <= at_most(draws)  # not by being timid: the level is nearly used
    assert failed <= at_most(draws)
    all_at_theirs, _ = released(rng, [0.05] * 6, draws=300)
    assert all_at_theirs == 0


def test_an_adapter_whose_average_is_at_the_pooled_margin_is_rarely_released():
    rng, draws = np.random.default_rng(3), 1500
    passed, failed = released(rng, [0.02] * 6, draws=draws, n=400, margin=0.08, pool_margin=0.02)
    assert 0.03 < passed <= at_most(draws)
    assert failed == 0
    singly, _ = released(rng, [0.02] * 6, draws=300, n=400, margin=0.08, pool_margin=0.5)
    assert singly > 0.9  # each task by itself would have let it go


def test_what_lost_nothing_is_released_and_what_lost_much_is_not():
    rng = np.random.default_rng(4)
    assert released(rng, [0.0] * 6, draws=300, n=400)[0] > 0.85
    passed, failed = released(rng, [0.15, 0, 0, 0, 0, 0], draws=150, n=200)
    assert (passed, failed > 0.9) == (0, True)


def test_holm_keeps_the_labels_of_a_fleet():
    """48 tasks, each with a true drop of exactly its margin: every PASS and every FAIL is a false one."""
    rng, draws, n = np.random.default_rng(5), 1000, 100
    passed, failed, uncorrected = 0, 0, 0
    for fleet in drawn(rng, (draws, 8, 6), n=n, flips=0.1, drop=0.05):
        tasks = {str(i): [cell(*counts, n, 0.05) for counts in row] for i, row in enumerate(fleet)}
        uncorrected += any(one.verdict == "PASS" for row in tasks.values() for one in row)
        judged = judge_fleet(tasks, alpha=ALPHA, pool_margin=0.02)
        labels = {one.verdict for it in judged.values() for one in it.tasks}
        passed += "PASS" in labels
        failed += "FAIL" in labels
        assert all(it.verdict != "PASS" for it in judged.values())
    assert max(passed, failed) / draws <= at_most(draws)
    assert [x / draws for x in (uncorrected, passed, failed)] == pytest.approx([0.88, 0.005, 0.02], abs=0.015)


def test_holm_keeps_the_releases_of_a_fleet():
    """8 adapters, each with one task at its margin and 5 untouched: every release is a false one."""
    rng, draws, n = np.random.default_rng(6), 800, 200
    some, uncorrected = 0, 0
    for fleet in drawn(rng, (draws, 8), n=n, flips=0.1, drop=0.05):
        tasks = {
            str(i): [LEARNED, cell(*counts, n, 0.05), *[cell(0, 0, n, 0.05)] * 5] for i, counts in enumerate(fleet)
        }
        judged = judge_fleet(tasks, alpha=ALPHA, pool_margin=0.05)
        some += any(it.verdict == "PASS" for it in judged.values())
        uncorrected += any(it.p_value <= ALPHA for it in judged.values())
    assert some / draws <= at_most(draws)
    assert [x / draws for x in (uncorrected, some)] == pytest.approx([0.26, 0.028], abs=0.015)


N, MARGIN, LOOKS = 1000, 0.02, 5


def paths(drop, draws, flips=0.05):
    """Lost and gained documents at each look, shape (2, draws, looks), and the documents looked at."""
    share = [(flips + drop) / 2, (flips - drop) / 2, 1 - flips]
    new = np.random.default_rng(7).multinomial(N // LOOKS, share, size=(draws, LOOKS))
    return new.cumsum(axis=1)[..., :2].transpose(2, 0, 1), N // LOOKS * np.arange(1, LOOKS + 1)


def test_looks_keep_alpha_and_save_documents():
    draws = 20_000
    bounds = levels(ALPHA, LOOKS)
    critical = {"score": [], "exact": [], "peeking": []}
    for look, level in enumerate(bounds, 1):
        n = N // LOOKS * look
        gained, lost = np.indices((n + 1, n + 1))
        possible = (lost + gained <= n) & (lost + gained < n // 4)
        scores = np.where(possible, tango.score(lost, gained, n, MARGIN), np.inf)
        critical["score"].append(-norm.isf(level))
        critical["exact"].append(exact_critical_score(scores, n, MARGIN, level))
        critical["peeking"].append(-1.6448536)

    def stopped(drop, rule):
        (lost, gained), n = paths(drop, draws)
        return np.stack(
            [tango.score(lost[:, k], gained[:, k], n[k], MARGIN) <= critical[rule][k] for k in range(LOOKS)]
        )

    false = {rule: stopped(MARGIN, rule).any(axis=0).mean() for rule in critical}
    assert false["exact"] <= at_most(draws) and false["score"] <= at_most(draws)
    assert list(false.values()) == pytest.approx([0.049, 0.046, 0.127], abs=0.004)
    clear = stopped(0.0, "score")
    seen = np.where(clear.any(axis=0), clear.argmax(axis=0) + 1, LOOKS) * (N // LOOKS)
    assert seen.mean() == pytest.approx(762, abs=10)


def test_a_fleet_that_is_looked_at_again_and_again():
    """Four adapters at the margin, three looks, alpha divided by four beforehand: a release in 5 % of fleets."""
    rng, draws, step = np.random.default_rng(8), 800, 60
    rules = {"spent": levels(ALPHA / 4, 3), "peeking": [ALPHA] * 3}
    released = dict.fromkeys(rules, 0)
    new = rng.multinomial(step, [0.075, 0.025, 0.9], size=(draws, 4, 3))[..., :2].cumsum(axis=2).tolist()
    for fleet in new:
        for rule, bounds in rules.items():
            open_ones, passed = set(range(4)), False
            for look, alpha in enumerate(bounds):
                tasks = {
                    str(i): [LEARNED, cell(*fleet[i][look], step * (look + 1), 0.05, alpha)] for i in sorted(open_ones)
                }
                judged = judge_fleet(tasks, alpha=alpha, pool_margin=0.02, adjust="none")
                passed |= any(it.verdict == "PASS" for it in judged.values())
                open_ones = {int(i) for i, it in judged.items() if it.verdict == "INCONCLUSIVE"}
            released[rule] += passed
    assert released["spent"] / draws <= at_most(draws)
    assert [released[rule] / draws for rule in rules] == pytest.approx([0.025, 0.275], abs=0.015)
