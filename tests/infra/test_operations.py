"""The commands of docs/OPERATIONS.md: each is one, and they leave no pool without a worker."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.settings import PROJECT
from tests.operations.conftest import started_server

TEXT = (PROJECT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
DEPLOYMENTS = yaml.safe_load((PROJECT / "deployments" / "prefect.yaml").read_text())["deployments"]
POOLS = list(dict.fromkeys(one["work_pool"]["name"] for one in DEPLOYMENTS))
PROGRAMS = {"cp", "docker", "export", "kubectl", "pip", "prefect", "sed", "tunefleet", "${EDITOR:-vi}"}


def commands(section: str) -> str:
    """The indented lines of a section, as one script."""
    return "".join(re.findall(r"^    (.*\n)", SECTIONS[section], re.M))


WITH_COMMANDS = [section for section in SECTIONS if re.search(r"^(prefect|docker) ", commands(section), re.M)]


@pytest.mark.parametrize("section", WITH_COMMANDS)
def test_what_is_written_as_a_command_is_one(section: str) -> None:
    subprocess.run(["bash", "-n"], input=commands(section), text=True, check=True)
    for line in commands(section).splitlines():
        assert line.split()[0] in PROGRAMS, line
        assert not re.search(r"^[^#]* \.\.\.", line), f"left to the reader: {line}"


@pytest.mark.parametrize("section", [name for name in WITH_COMMANDS if "prefect worker start" in commands(name)])
def test_every_pool_has_a_worker(section: str) -> None:
    assert re.findall(r"^prefect worker start --pool (\S+)", commands(section), re.M) == POOLS


@pytest.mark.slow
def test_the_pools_of_kubernetes_get_the_image_that_was_pushed(tmp_path: Path) -> None:
    """The lines themselves, on a real server."""
    script = commands("On Kubernetes")
    (tagged,) = {image.split(":")[0] for image in re.findall(r"docker push (\S+)", script)}
    lines = re.findall(r"^tunefleet deploy .*|^sed .*\n.* prefect .*", script, re.M)
    assert len(lines) == 3
    with started_server(tmp_path) as server:
        path = f"{Path(sys.executable).parent}:{server.env['PATH']}"
        for line in lines:
            here = line.replace("REGISTRY", "registry.example.org/team")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", here],
                cwd=PROJECT,
                env={**server.env, "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        for pool, kind in zip(POOLS, ("cpu", "cuda"), strict=True):
            template = json.loads(server.prefect("work-pool", "inspect", pool, "--output", "json"))["base_job_template"]
            image = tagged.replace("REGISTRY", "registry.example.org/team")
            assert template["variables"]["properties"]["image"]["default"] == f"{image}:{kind}"
            name = "kubernetes-gpu" if pool.endswith("-gpu") else "kubernetes"
            ours = json.loads((PROJECT / "infra" / "work_pools" / f"{name}.json").read_text())
            assert template["job_configuration"] == ours["job_configuration"]
