"""The base job templates: as Prefect's own workers fill them in, and held against the schemas of what runs them."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import kubernetes_validate
import pytest
from docker.models.containers import _create_container_args
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.server.schemas.actions import validate_base_job_template
from prefect.utilities.schema_tools.validation import validate
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from infra.rendezvous import ALONE, Nodes, translated
from infra.rendezvous import nodes as read_nodes
from infra.settings import PROJECT
from tests.infra.test_kubernetes import VERSIONS, assert_restricted, objects

FOLDER = PROJECT / "infra" / "work_pools"
CONFIGURATIONS: dict[str, type[BaseJobConfiguration]] = {
    "kubernetes": KubernetesWorkerJobConfiguration,
    "kubernetes-gpu": KubernetesWorkerJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "docker-gpu": DockerWorkerJobConfiguration,
    "slurm": ProcessJobConfiguration,
}


def template(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


def filled_in(name: str, variables: Mapping[str, Any]) -> Any:
    """What the worker makes of the template for a flow run of a deployment with these job_variables."""
    base = template(name)
    validate(dict(variables), base["variables"], raise_on_error=True, preprocess=False)

    async def fill_in() -> BaseJobConfiguration:
        client = PrefectClient("http://127.0.0.1:1/api")  # never asked: these templates name no block
        return await CONFIGURATIONS[name].from_template_and_values(base, dict(variables), client=client)

    configuration = anyio.run(fill_in)
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="fine-ibis"))
    return configuration


def job(name: str, **variables: Any) -> dict[str, Any]:
    return filled_in(name, variables).job_manifest  # type: ignore[no-any-return]


def container(name: str, **variables: Any) -> dict[str, Any]:
    """The body of Docker's "create container" request, as docker-py makes it."""
    filled = filled_in(name, variables)
    return _create_container_args(  # type: ignore[no-any-return]
        {
            "image": filled.image,
            "command": filled.command,
            "version": "1.44",
            "volumes": filled.volumes,
            "mem_limit": filled.mem_limit,
            **filled.container_create_kwargs,
        }
    )


@pytest.mark.slow
def test_the_templates_follow_prefects_defaults(tmp_path: Path) -> None:
    """After a change of build.py, or a new version of Prefect: python infra/work_pools/build.py"""
    shutil.copy(FOLDER / "build.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "build.py"], check=True)
    made = {file.name: file.read_text() for file in tmp_path.glob("*.json")}
    assert made == {file.name: file.read_text() for file in FOLDER.glob("*.json")}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_prefects_server_accepts_the_template(name: str) -> None:
    """Every placeholder is a variable, and the defaults are of the types that they say."""
    base = template(name)
    assert validate_base_job_template(base) == base
    properties = base["variables"]["properties"]
    validate({}, base["variables"], raise_on_error=True, preprocess=False)
    defaults = {key: said["default"] for key, said in properties.items() if said.get("default") is not None}
    validate(defaults, base["variables"], raise_on_error=True, preprocess=False)
    used = json.dumps(base["job_configuration"])
    assert [key for key in properties if f"{{{{ {key} }}}}" not in used] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("kubernetes", {}),
        ("kubernetes-gpu", {}),
        (
            "kubernetes-gpu",
            {
                "gpus": 4,
                "kueue_queue": "gpu",
                "nodes": 2,
                "priority_class": "batch",
                "node_selector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
                "cache_volume": {"name": "cache", "persistentVolumeClaim": {"claimName": "bases"}},
                "env": {"HF_HUB_OFFLINE": "1"},
            },
        ),
    ],
)
def test_a_job_is_what_kubernetes_accepts(name: str, variables: dict[str, Any], version: str) -> None:
    manifest = job(name, **variables)
    pod = manifest["spec"]["template"]["spec"]
    assert_restricted(pod)
    assert "{{" not in json.dumps(manifest)
    for prefects in ("parallelism", "completions"):  # it wants them here too, where Kubernetes drops them
        del pod[prefects]
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_gpu_job_says_what_it_needs() -> None:
    manifest = job("kubernetes-gpu", gpus=2, kueue_queue="gpu", shm_size="16Gi", ephemeral_storage="300Gi")
    pod = manifest["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 2, "ephemeral-storage": "300Gi"}
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert manifest["metadata"]["labels"]["prefect.io/flow-run-name"] == "fine-ibis"  # Prefect's own are still there
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in pod["volumes"]
    assert manifest["spec"]["backoffLimit"] == 0  # trying again is Prefect's business, not also Kubernetes'
    assert pod["terminationGracePeriodSeconds"] > 60
    assert {"name": "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "value": "reschedule"} in pod["containers"][0]["env"]


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_pods_of_a_job_find_the_first(nodes: int) -> None:
    manifest = job("kubernetes-gpu", nodes=nodes)
    spec, pod = manifest["spec"], manifest["spec"]["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (nodes, nodes, "Indexed")
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}  # it has the flow; late ones are ended
    service = next(o for o in objects("workers.yaml") if o["kind"] == "Service")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    said = [variable for variable in pod["containers"][0]["env"] if variable["name"] in ("JOB_NAME", "MASTER_ADDR")]
    assert [variable["name"] for variable in said] == ["JOB_NAME", "MASTER_ADDR"]  # Kubernetes fills in what is above
    assert said[1]["value"] == f"$(JOB_NAME)-0.{pod['subdomain']}"
    as_the_kubelet_has_it = {"MASTER_ADDR": "job-0.runs", "JOB_COMPLETION_INDEX": str(nodes - 1)}
    setting, *command = pod["containers"][0]["args"][1:]
    environment = {**as_the_kubelet_has_it, **dict([setting.split("=")])}
    here = read_nodes({**environment, **translated(environment)})
    assert here == (ALONE if nodes == 1 else Nodes(rank=2, count=3, address="job-0.runs"))
    assert command == ["python", "-m", "tasks.training.node", "prefect", "flow-run", "execute"]


def test_what_is_not_asked_for_is_not_in_the_job() -> None:
    manifest = job("kubernetes")
    assert "kueue.x-k8s.io/queue-name" not in manifest["metadata"]["labels"]
    assert "priorityClassName" not in manifest["spec"]["template"]["spec"]
    assert manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 0


def test_a_queued_gpu_is_waited_for() -> None:
    assert filled_in("kubernetes-gpu", {}).pod_watch_timeout_seconds >= 24 * 3600


def test_a_job_finds_what_the_cluster_has() -> None:
    """The account, the ConfigMap and the Secret of infra/kubernetes."""
    there = {(o["kind"], o["metadata"]["name"]) for o in objects("workers.yaml", "config.yaml", "secrets.example.yaml")}
    manifest = job("kubernetes-gpu")
    pod = manifest["spec"]["template"]["spec"]
    named = [(next(iter(source)), next(iter(source.values()))["name"]) for source in pod["containers"][0]["envFrom"]]
    assert named == [("configMapRef", "tunefleet"), ("secretRef", "tunefleet")]
    assert {("ServiceAccount", pod["serviceAccountName"]), ("ConfigMap", "tunefleet"), ("Secret", "tunefleet")} <= there
    assert manifest["metadata"]["namespace"] == "tunefleet"


@pytest.mark.parametrize("variables", [{"gpus": -1}, {"gpus": "two"}, {"tolerations": "all"}])
def test_a_wrong_variable_is_refused(variables: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="Validation failed"):
        filled_in("kubernetes-gpu", variables)


def test_a_container_is_confined_and_has_its_gpus() -> None:
    host = container("docker-gpu", gpus=2)["host_config"]
    assert host["DeviceRequests"][0]["Count"] == 2
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["ShmSize"] == 8 * 2**30
    assert host["Memory"] == 32 * 2**30
    assert host["NanoCpus"] == 8 * 10**9
    assert container("docker-gpu")["user"] == "10001:10001"
    assert "DeviceRequests" not in container("docker")["host_config"]


def test_a_flow_run_becomes_a_slurm_job() -> None:
    configuration = filled_in("slurm", {"gpus": 2, "partition": "a100", "python": "/shared/.venv/bin/python"})
    words = shlex.split(configuration.command)
    assert words[0] == "srun"
    assert {"--partition=a100", "--gres=gpu:2", "--cpus-per-task=8", "--mem=32G"} <= set(words)
    python = "/shared/.venv/bin/python"
    assert words[-6:] == [python, "-m", "tasks.training.node", python, "-m", "prefect.engine"]
    # Prefect 3.8's worker ends with an exception if a run comes back to the queue while it still waits for srun.
    assert "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR" not in configuration.env
