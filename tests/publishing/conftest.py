"""No test of publishing sees the user's own accounts, also where it needs no server."""

import pytest


@pytest.fixture(autouse=True)
def isolated(nobodys_accounts: None) -> None:
    pass
