"""What a machine that follows does not let machine 0 ask of it; that they train together: test_two_machines.py."""

import pytest

from infra.errors import RequestError
from infra.rendezvous import Nodes
from tasks.training.node import train_along


@pytest.mark.parametrize("config", ["../../elsewhere", "ddp.yaml", "", None])
def test_a_config_that_is_none_of_ours_is_refused(config: str | None) -> None:
    job = {"accelerate": {"config": config, "num_processes": 2}}
    with pytest.raises(RequestError, match=r"accelerate.config: got .*; allowed are ddp, fsdp, deepspeed"):
        train_along(Nodes(1, 2, "127.0.0.1"), job, lambda: pytest.fail("it was ready for this job"))
