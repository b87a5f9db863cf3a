"""Commands and environments of jobs with one process and with several, and the files that accelerate reads."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from infra.errors import RequestError, StageError
from infra.rendezvous import ALONE, Nodes
from infra.settings import PROJECT
from tasks.training import launching
from tasks.training.launching import (
    assert_world_size,
    device_environment,
    launch_command,
    launch_environment,
    own_device,
    spread,
)

FILES = sorted((PROJECT / "infra" / "accelerate").glob("*.yaml"))
TWO = ["cuda:0", "cuda:1"]
FIRST, SECOND = (Nodes(rank, 2, "10.0.0.7", 4000) for rank in (0, 1))


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def crew(monkeypatch: pytest.MonkeyPatch, rank: int = 0) -> None:
    """This is one of two machines."""
    for name, value in (
        ("NNODES", "2"),
        ("NODE_RANK", str(rank)),
        ("MASTER_ADDR", "10.0.0.7"),
        ("MASTER_PORT", "4000"),
    ):
        monkeypatch.setenv(name, value)


def test_one_process_is_plain_python() -> None:
    for devices in (["cpu"], ["cuda:0"]):
        assert launch_command(devices, "ddp", 1) == [sys.executable]


@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_several_come_from_accelerate_and_the_file_of_that_name(config: launching.Config) -> None:
    command = launch_command(TWO, config, 2)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert Path(options["--config_file"]) in FILES and Path(options["--config_file"]).stem == config
    assert options["--num_processes"] == "2" and options["--main_process_port"] == "0"


@pytest.mark.parametrize(
    ("devices", "config", "count", "message"),
    [
        (["cpu"], "fsdp", 2, "got fsdp for 2 processes on a CPU"),
        (["cpu"], "deepspeed", 2, "got deepspeed for 2 processes on a CPU"),
        (TWO, "ddp", 4, "got 4 for 2 devices"),
        (TWO, "ddp", 1, "got 1 for 2 devices"),
    ],
)
def test_what_these_devices_cannot_do_is_refused(
    devices: list[str], config: launching.Config, count: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        launch_command(devices, config, count)


def test_a_missing_deepspeed_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="deepspeed is not installed"):
        launch_command(TWO, "deepspeed", 2)


@pytest.mark.parametrize(
    ("visible", "devices", "expected"),
    [
        (None, ["cuda:3", "cuda:1"], "3,1"),
        ("4, GPU-ab,7", ["cuda:1"], "GPU-ab"),
        ("4,5,7", ["cuda:0", "cuda:2"], "4,7"),
    ],
)
def test_a_job_sees_its_gpus_and_no_other(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, devices: list[str], expected: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch_environment(devices, 1, len(devices)) == {"CUDA_VISIBLE_DEVICES": expected}


def test_cores_are_shared_among_jobs_and_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    threads = [launch_environment(["cpu"], *share)["OMP_NUM_THREADS"] for share in ((1, 1), (2, 1), (2, 4), (9, 9))]
    assert threads == ["16", "8", "2", "1"]
    assert device_environment("cpu", 2) == launch_environment(["cpu"], 2, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch_environment(["cpu"], 2, 2)["OMP_NUM_THREADS"] == "3"


def test_each_process_takes_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (own_device("cpu"), own_device("cuda:0")) == ("cpu", "cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (own_device("cpu"), own_device("cuda:0")) == ("cpu", "cuda:1")


def test_a_process_alone_is_not_two() -> None:
    assert_world_size(1)
    with pytest.raises(StageError, match="asked for 2 processes, got 1"):
        assert_world_size(2)


# --- several machines


def test_processes_are_spread_over_the_machines_of_the_job_and_one_is_on_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert spread("fsdp", 4) == ALONE
    crew(monkeypatch)
    assert (spread("ddp", 4), spread("ddp", 1)) == (FIRST, ALONE)


def test_what_cannot_be_spread_is_refused_for_all_reasons_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crew(monkeypatch, rank=1)
    with pytest.raises(RequestError) as refused:
        spread("fsdp", 3)
    assert [fault.where for fault in refused.value.faults] == [
        *("accelerate.num_processes", "accelerate.config", "NODE_RANK")
    ]


def test_machine_0_conducts_and_the_others_are_launched_like_it() -> None:
    first, second = (launch_command(TWO, "ddp", 4, machine) for machine in (FIRST, SECOND))
    assert first[:3] == [sys.executable, "-m", "infra.conducting"]
    ranks = [command[command.index("--machine_rank") + 1] for command in (first, second)]
    assert ranks == ["0", "1"]
    assert [word for word in first[3:] if word != "0"] == [word for word in second if word != "1"]
    with pytest.raises(RequestError, match="got 1 for 2 devices"):
        launch_command(TWO, "ddp", 2, FIRST)


def test_accelerate_understands_it_as_torchrun_will() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = _validate_launch_command(
        launch_command_parser().parse_args([*launch_command(TWO, "ddp", 4, SECOND)[3:], "script.py"])
    )[0]
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.node_rank, arguments.nproc_per_node) == ("2", 1, "2")
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.7:4001")


def test_machines_talk_through_the_network_and_share_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    apart = launch_environment(["cpu"], 1, 4, FIRST)
    assert apart["OMP_NUM_THREADS"] == "8" and "GLOO_SOCKET_IFNAME" not in apart
    for here in (ALONE, Nodes(1, 2, "localhost"), Nodes(1, 2, "127.0.0.1")):
        assert launch_environment(["cpu"], 1, 4, here)["GLOO_SOCKET_IFNAME"] == "lo"


# --- the files


def test_there_is_a_file_for_every_word_of_the_recipe() -> None:
    assert {file.stem for file in FILES} == set(launching.Config.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(file))
    assert config.num_processes == -1  # the recipe says how many; a number here would be a second truth
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in ("fsdp_config", "deepspeed_config"):  # the loader itself looks at the outer keys only
        assert set(getattr(config, section)) <= set(known)
    assert set(yaml.safe_load(file.read_text())) <= set(vars(config))


def test_fsdp_arrives_in_the_workers_as_it_stands_in_the_file() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = [*launch_command(TWO, "fsdp", 2)[3:], "script.py"]
    file = Path(arguments[1])
    workers = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(arguments))[0])
    assert workers["ACCELERATE_USE_FSDP"] == "true"
    for key, value in yaml.safe_load(file.read_text())["fsdp_config"].items():
        assert workers[key.upper()].lower() == str(value).lower()
