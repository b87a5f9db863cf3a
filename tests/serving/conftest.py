"""One small store that the tests of serving look at."""

import pytest

from tests.serving.fleet import Fleet, make_fleet


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return make_fleet(tmp_path_factory.mktemp("fleet"))
