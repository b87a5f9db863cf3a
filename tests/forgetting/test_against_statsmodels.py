"""Holm and the cluster-robust error against statsmodels, where that is installed."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.forgetting import clustered
from tasks.forgetting.family import holm
from tests.forgetting.test_clustered import by_hand

pytestmark = pytest.mark.slow  # the import alone takes seconds


@pytest.fixture(scope="module")
def multitest() -> ModuleType:
    return pytest.importorskip("statsmodels.stats.multitest")


@pytest.fixture(scope="module")
def api() -> ModuleType:
    return pytest.importorskip("statsmodels.api")


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_holm(multitest, p_values):
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1].tolist())


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 40), right_wrong=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_cluster_robust_error(api, seed, count, right_wrong):
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(count), rng.integers(0, count, 3 * count)])
    shared = rng.normal(0, 1, count)[groups] + rng.normal(0, 0.5, len(groups))
    drops = np.sign(np.round(shared)) if right_wrong else shared
    if np.ptp(drops) == 0:
        return
    fit = api.OLS(drops, np.ones(len(drops))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    robust = float(fit.bse[0]) * (count / (count - 1)) ** 0.5
    assert by_hand(drops, groups) == pytest.approx(robust, rel=1e-9)
    found = clustered.grouping(drops, groups)
    single = drops.std() / len(drops) ** 0.5
    assert found.error == pytest.approx(max(robust, single), rel=1e-9)
    assert found.design_effect == pytest.approx(max(1, (robust / single) ** 2), rel=1e-9)
