"""Which machine this is, in the words of torchrun, Kubernetes and Slurm."""

import pytest

from infra.errors import RequestError
from infra.rendezvous import ALONE, Nodes, first_host, nodes, translated

TORCHRUN = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2", "NNODES": "3", "MASTER_ADDR": "pack-0.pack"}
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[07-08],big1",
    "SLURM_NNODES": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


def read(environment: dict[str, str]) -> Nodes:
    """As a process of a job reads it."""
    return nodes({**environment, **translated(environment)})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"NNODES": "1", "MASTER_ADDR": "10.0.0.7"}, ALONE),
        ({"JOB_COMPLETION_INDEX": "2"}, ALONE),  # each index works for itself
        ({"SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "a[1-3]"}, ALONE),  # not below srun
        (TORCHRUN, Nodes(1, 2, "10.0.0.7", 4000)),
        (KUBERNETES, Nodes(2, 3, "pack-0.pack", 29500)),
        (SLURM, Nodes(1, 3, "gpu07", 26912)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu08,big1"}, Nodes(1, 2, "gpu08", 26912)),
        ({**SLURM, **TORCHRUN}, Nodes(1, 2, "10.0.0.7", 4000)),
        ({**SLURM, **KUBERNETES, "NODE_RANK": "0"}, Nodes(0, 3, "pack-0.pack", 26912)),
    ],
)
def test_every_scheduler_is_understood(environment: dict[str, str], expected: Nodes) -> None:
    assert read(environment) == expected


def test_an_allocation_alone_is_no_word_that_others_join() -> None:
    assert nodes(SLURM) == ALONE


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert nodes() == Nodes(1, 2, "10.0.0.7", 4000)


@pytest.mark.parametrize(
    ("environment", "places"),
    [
        ({"NNODES": "2"}, ["NODE_RANK", "MASTER_ADDR"]),
        ({**TORCHRUN, "NODE_RANK": "2"}, ["NODE_RANK"]),
        (
            {"NNODES": "1:4", "NODE_RANK": "-1", "MASTER_PORT": "65535"},
            ["NNODES", "NODE_RANK", "MASTER_PORT", "MASTER_ADDR"],
        ),
        ({**SLURM, "SLURM_NODEID": "3"}, ["NODE_RANK"]),
        ({**SLURM, "SLURM_LOCALID": "1"}, ["SLURM_LOCALID"]),
        ({**SLURM, "JOB_COMPLETION_INDEX": "0", "SLURM_LOCALID": "1"}, ["SLURM_LOCALID", "NODE_RANK"]),
    ],
)
def test_all_contradictions_are_told_at_once(environment: dict[str, str], places: list[str]) -> None:
    with pytest.raises(RequestError) as refused:
        read(environment)
    assert [fault.where for fault in refused.value.faults] == places


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("localhost", "localhost"),
        ("login,gpu[1-2]", "login"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[9,03-05].lab,login", "gpu9.lab"),
        ("rack[0-1]n[3,5]", "rack0n3"),
    ],
)
def test_the_first_host_is_the_one_that_scontrol_prints_first(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
