"""The manifests of infra/kubernetes, against the schemas of Kubernetes itself and against each other."""

import json
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect_kubernetes.settings import KubernetesSettings

from infra.settings import PROJECT

FOLDER = PROJECT / "infra" / "kubernetes"
APPLIED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
VERSIONS = ("1.31", "1.37")  # the oldest that we promise and the newest that is known


def objects(*files: str) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from yaml.safe_load_all((FOLDER / file).read_text())


def pod_specs() -> list[Any]:
    found = [o for o in objects(*APPLIED) if "template" in o.get("spec", {})]
    return [pytest.param(o["spec"]["template"]["spec"], id=f"{o['kind']}-{o['metadata']['name']}") for o in found]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", [*APPLIED, "secrets.example.yaml"])
def test_a_manifest_is_what_kubernetes_accepts(file: str, version: str) -> None:
    for manifest in objects(file):
        kubernetes_validate.validate(manifest, version, strict=True)  # strict: an unknown key is an error


def test_the_schemas_notice_a_mistake() -> None:
    worker = next(o for o in objects("workers.yaml") if o["kind"] == "Deployment")
    worker["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True  # belongs a level deeper
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker, VERSIONS[0], strict=True)


def test_every_file_is_applied_or_left_out_on_purpose() -> None:
    left_out = {"kustomization.yaml", "secrets.example.yaml", "kueue.yaml"}
    assert {file.name for file in FOLDER.glob("*.yaml")} == {*APPLIED, *left_out}


@pytest.mark.parametrize("spec", pod_specs())
def test_a_pod_may_enter_a_restricted_namespace(spec: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    assert_restricted(spec)


def assert_restricted(spec: dict[str, Any]) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all({"emptyDir", "persistentVolumeClaim"} & volume.keys() for volume in spec["volumes"])
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted >= {volume["name"] for volume in spec["volumes"]}, "a volume that nobody mounts"


def test_what_a_manifest_names_exists() -> None:
    """Accounts, secrets, services and the pods that a service or a policy means."""
    everything = list(objects(*APPLIED, "secrets.example.yaml"))
    there = {(o["kind"], o["metadata"]["name"]) for o in everything}
    pods = [o["spec"]["template"] for o in everything if "template" in o.get("spec", {})]
    for pod in pods:
        account = pod["spec"].get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in there
        for variable in pod["spec"]["containers"][0]["env"]:
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                secret = next(o for o in everything if o["metadata"]["name"] == reference["name"])
                assert reference["key"] in secret["stringData"]
    job = json.loads((PROJECT / "infra" / "work_pools" / "kubernetes-gpu.json").read_text())["job_configuration"]
    labels = [pod["metadata"]["labels"] for pod in [*pods, job["job_manifest"]["spec"]["template"]]]
    for o in everything:
        if o["kind"] == "Service":
            assert o["spec"]["selector"] in labels
        if o["kind"] == "NetworkPolicy" and "matchLabels" in o["spec"]["podSelector"]:
            assert o["spec"]["podSelector"]["matchLabels"] in labels
        assert o["metadata"].get("namespace", "tunefleet") == "tunefleet"


def workers() -> list[dict[str, Any]]:
    """The containers of Prefect's workers."""
    found = [o for o in objects("workers.yaml") if o["kind"] == "Deployment"]
    return [o["spec"]["template"]["spec"]["containers"][0] for o in found]


def test_workers_poll_the_pools_of_the_deployments() -> None:
    deployments = yaml.safe_load((PROJECT / "deployments" / "prefect.yaml").read_text())["deployments"]
    commands = [worker["args"] for worker in workers()]
    polled = {command[command.index("--pool") + 1] for command in commands}
    assert polled == {"tunefleet", "tunefleet-gpu"}
    assert polled >= {deployment["work_pool"]["name"] for deployment in deployments}


@pytest.mark.parametrize("worker", workers(), ids=lambda worker: worker["args"][worker["args"].index("--pool") + 1])
def test_a_worker_is_set_as_meant(worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect passes over a variable whose name it does not know."""
    said = {one["name"]: one["value"] for one in worker["env"] if "value" in one}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    settings = KubernetesSettings()
    (secret,) = [one["valueFrom"]["secretKeyRef"] for one in worker["env"] if one["name"] == "PREFECT_API_AUTH_STRING"]
    of_jobs = settings.worker.api_auth_string_secret_name, settings.worker.api_auth_string_secret_key
    assert of_jobs == (secret["name"], secret["key"])
    assert settings.observer.namespaces == {"tunefleet"}
    assert "--limit" not in worker["args"]  # Prefect 3.8's worker ends if a run that it still holds is scheduled again


def test_the_leases_outlast_the_servers_pod() -> None:
    """Prefect's lease storage on disk is below PREFECT_HOME."""
    (deployment,) = [o for o in objects("server.yaml") if o["kind"] == "Deployment"]
    (claim,) = [o for o in objects("server.yaml") if o["kind"] == "PersistentVolumeClaim"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    said = {one["name"]: one.get("value") for one in container["env"]}
    assert said["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    (mount,) = [one["name"] for one in container["volumeMounts"] if one["mountPath"] == said["PREFECT_HOME"]]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert deployment["spec"]["strategy"]["type"] == "Recreate"  # two pods cannot both have it


def test_prefects_images_are_of_the_locked_version() -> None:
    locked = re.search(r"^prefect==(.+)$", (PROJECT / "requirements" / "run.txt").read_text(), re.M)
    assert locked is not None
    texts = [file.read_text() for file in FOLDER.glob("*.yaml")]
    images = [image for text in texts for image in re.findall(r"image: prefecthq/prefect:(\S+)", text)]
    assert len(images) == 3
    assert {image.split("-")[0] for image in images} == {locked[1]}


def test_the_example_holds_no_secret() -> None:
    for secret in objects("secrets.example.yaml"):
        assert all("REPLACE-ME" in value for value in secret["stringData"].values())
