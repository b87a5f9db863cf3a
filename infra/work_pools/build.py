"""Writes the base job templates of the work pools: Prefect's own, with what a GPU job needs and Prefect leaves out.

    python infra/work_pools/build.py        (needs prefect-kubernetes and prefect-docker, which `make lint` installs)

A template is what `prefect work-pool create NAME --type TYPE --base-job-template FILE` takes: variables, which a
deployment may set as job_variables, and a job in which they stand as {{ placeholders }}. A variable without a value
takes its key out of the job. The files beside this one are made by it, so that they follow Prefect's defaults; a test
holds them up to date. A process pool needs none: Prefect's own will do.

What every container gets: another user than root, a root file system that is read-only, no capabilities, limits for
memory and processors, shared memory for data loaders, and time to write a checkpoint after SIGTERM. Written to are only
/cache (HOME, TUNEFLEET_CACHE and PREFECT_HOME lie there, see infra/docker/Dockerfile) and /tmp.

A GPU job of Kubernetes or Slurm may have several machines: the flow runs on the first, and tasks/training/node.py on
the others trains along.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

Template = dict[str, Any]
HERE = Path(__file__).parent
UID = 10001  # of the image's user
DAY = 24 * 3600
GRACE = 120  # seconds from SIGTERM to SIGKILL: a stage gets 30 to write its checkpoint, then the run is handed back


def main() -> None:
    from prefect.workers.process import ProcessWorker
    from prefect_docker.worker import DockerWorker
    from prefect_kubernetes.worker import KubernetesWorker

    on_kubernetes, on_docker, on_host = (
        worker.get_default_base_job_template() for worker in (KubernetesWorker, DockerWorker, ProcessWorker)
    )
    for name, template in {
        "kubernetes": kubernetes(on_kubernetes, gpus=0),
        "kubernetes-gpu": kubernetes(on_kubernetes, gpus=1),
        "docker": docker(on_docker, gpus=0),
        "docker-gpu": docker(on_docker, gpus=1),
        "slurm": slurm(on_host),
    }.items():
        (HERE / f"{name}.json").write_text(json.dumps(template, indent=2) + "\n")


def kubernetes(default: Template, *, gpus: int) -> Template:
    template = deepcopy(default)
    _set_defaults(
        template,
        image="tunefleet:cuda" if gpus else "tunefleet:cpu",
        namespace="tunefleet",
        service_account_name="tunefleet-run",
        finished_job_ttl=DAY,
        pod_watch_timeout_seconds=DAY,  # a pod may queue for a GPU; prefect-kubernetes before 0.8 calls it crashed
        cpu_request="4" if gpus else "2",
        cpu_limit="8" if gpus else "4",
        memory_request="32Gi" if gpus else "8Gi",
        memory_limit="32Gi" if gpus else "8Gi",
    )
    _add_variables(
        template,
        gpus=_number(gpus, "GPUs of the pod (nvidia.com/gpu), 0 or more. Those of one pack work together."),
        node_selector=_object({}, "Labels that the node must have, e.g. {nvidia.com/gpu.product: NVIDIA-L4}."),
        tolerations={
            "type": "array",
            "description": "Taints that the pod tolerates.",
            "default": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else [],
        },
        kueue_queue=_text(None, "Kueue's LocalQueue in which the job waits; without one the pod waits by itself."),
        priority_class=_text(None, "PriorityClass of the pod."),
        shm_size=_text("8Gi" if gpus else "1Gi", "Size of /dev/shm; it counts as the pod's memory."),
        ephemeral_storage=_text(
            "100Gi" if gpus else "20Gi", "Local disk of the pod: /cache, /tmp and logs together. More is evicted."
        ),
        cache_volume=_object(
            {"name": "cache", "emptyDir": {}},
            "The volume named cache, mounted at /cache. A persistentVolumeClaim keeps base models between runs.",
        ),
        config_map=_text(
            "tunefleet", "ConfigMap that becomes environment variables: TUNEFLEET_STORE, AWS_ENDPOINT_URL."
        ),
        secret=_text("tunefleet", "Secret that becomes environment variables: AWS_SECRET_ACCESS_KEY, HF_TOKEN."),
        termination_grace_seconds=_number(GRACE, "Seconds between SIGTERM and SIGKILL of the pod."),
    )
    job = template["job_configuration"]["job_manifest"]
    # Prefect adds its own labels to these.
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "{{ kueue_queue }}"}
    pod = job["spec"]["template"]["spec"]
    pod |= {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": "{{ node_selector }}",
        "tolerations": "{{ tolerations }}",
        "priorityClassName": "{{ priority_class }}",
        "terminationGracePeriodSeconds": "{{ termination_grace_seconds }}",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            "{{ cache_volume }}",
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shm_size }}"}},
        ],
    }
    container = pod["containers"][0]
    container |= {
        "envFrom": [
            {"configMapRef": {"name": "{{ config_map }}"}},
            {"secretRef": {"name": "{{ secret }}", "optional": True}},  # a pod may have its rights from the cloud
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    disk = {"ephemeral-storage": "{{ ephemeral_storage }}"}
    container["resources"]["limits"] |= {"nvidia.com/gpu": "{{ gpus }}", **disk}
    container["resources"]["requests"] |= disk
    if gpus:
        _allow_several_pods(template)
    return template


def _allow_several_pods(template: Template) -> None:
    """An indexed job, whose pods find the first one by its name below the headless service `runs`.

    The first has the flow: when it ends well, the job has succeeded, and Kubernetes ends pods that came too late to
    hear of it. When any pod fails, `backoffLimit: 0` ends them all.
    """
    _add_variables(
        template, nodes=_number(1, "Pods of the job, each with `gpus`; a training may be spread over all.", least=1)
    )
    del template["variables"]["properties"]["command"]
    template["job_configuration"]["command"] = None
    spec = template["job_configuration"]["job_manifest"]["spec"]
    spec |= {"completionMode": "Indexed", "completions": "{{ nodes }}", "parallelism": "{{ nodes }}"}
    spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    spec["template"]["metadata"] = {"labels": {"app.kubernetes.io/component": "run"}}
    pod = spec["template"]["spec"]
    pod["subdomain"] = "runs"
    container = pod["containers"][0]
    container["env"] = [  # Prefect puts its own before these
        {
            "name": "JOB_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}},
        },
        {"name": "MASTER_ADDR", "value": "$(JOB_NAME)-0.runs"},
    ]
    # Not as a variable above, whose value has to be text: a placeholder that stands alone keeps its type.
    container["args"] = "env NNODES={{ nodes }} python -m tasks.training.node prefect flow-run execute"


def docker(default: Template, *, gpus: int) -> Template:
    template = deepcopy(default)
    _set_defaults(
        template,
        image="tunefleet:cuda" if gpus else "tunefleet:cpu",
        image_pull_policy="IfNotPresent",
        mem_limit="32g" if gpus else "8g",
        auto_remove=True,
        volumes=["tunefleet-cache:/cache"],
    )
    _add_variables(
        template,
        shm_size=_text("8g" if gpus else "1g", "Size of /dev/shm, with a unit: b, k, m, g."),
        nano_cpus=_number((8 if gpus else 4) * 10**9, "Processors of the container, in billionths of one.", least=1),
        tmp_size=_text("size=4g", "Options of the memory file system at /tmp, e.g. size=4g."),
    )
    # docker-py's names; see docker.models.containers.ContainerCollection.run
    container = {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "user": f"{UID}:{UID}",
        "shm_size": "{{ shm_size }}",
        "nano_cpus": "{{ nano_cpus }}",
        "tmpfs": {"/tmp": "{{ tmp_size }}"},
    }
    if gpus:
        _add_variables(template, gpus=_number(gpus, "GPUs of the container; -1 means all.", least=-1))
        container["device_requests"] = [{"driver": "nvidia", "count": "{{ gpus }}", "capabilities": [["gpu"]]}]
    template["job_configuration"]["container_create_kwargs"] = container
    del template["variables"]["properties"]["container_create_kwargs"]
    return template


def slurm(default: Template) -> Template:
    """A process pool whose processes are Slurm jobs: a worker on the login node, and `srun` for each flow run.

    The job waits in Slurm's queue for as long as it must, and holds a GPU only while a run is on it. srun hands
    signals, output and exit code through. A run whose job is preempted is crashed, and tried again like any other.
    """
    template = deepcopy(default)
    template["variables"]["properties"].pop("command")
    _add_variables(
        template,
        partition=_text("gpu", "Slurm's partition."),
        nodes=_number(1, "Machines of the job; a training may be spread over all.", least=1),
        gpus=_number(1, "GPUs on each machine; 0 or more."),
        cpus=_number(8, "Processors on each machine.", least=1),
        memory=_text("32G", "Memory on each machine, with a unit: K, M, G, T."),
        time_limit=_text("24:00:00", "Longest time of the job, days-hours:minutes:seconds."),
        python=_text(
            "python", "Python of the installation, on a disk that the nodes share: /shared/tunefleet/.venv/bin/python"
        ),
        srun_options=_text("--quiet", "More options of srun, e.g. --account=lab --qos=preempt --constraint=a100."),
    )
    template["job_configuration"]["command"] = (
        "srun --job-name=tunefleet --nodes={{ nodes }} --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=120 "
        "--partition={{ partition }} --gres=gpu:{{ gpus }} --cpus-per-task={{ cpus }} --mem={{ memory }} "
        "--time={{ time_limit }} --chdir=/tmp {{ srun_options }} "
        "{{ python }} -m tasks.training.node {{ python }} -m prefect.engine"
    )
    return template


def _set_defaults(template: Template, **defaults: Any) -> None:
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value


def _add_variables(template: Template, **variables: Any) -> None:
    for name, variable in variables.items():
        template["variables"]["properties"][name] = {"title": name.replace("_", " ").capitalize(), **variable}


def _number(default: int, description: str, *, least: int = 0) -> dict[str, Any]:
    return {"type": "integer", "description": description, "default": default, "minimum": least}


def _text(default: str | None, description: str) -> dict[str, Any]:
    text = {"type": "string", "description": description}
    return text if default is None else {**text, "default": default}


def _object(default: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "default": default}


if __name__ == "__main__":
    main()
