"""Kubernetes: a manifest that `kubectl apply -f -` takes. A ConfigMap holds the resolved configuration. A JobSet starts
DeepSpeed's launcher in one pod per node, or a Kubeflow Trainer v2 TrainJob starts torchrun.

Kubernetes restarts the job itself, up to cluster.max_restarts times, and not after exit code 2; every start resumes
from the newest valid checkpoint on the volume.
"""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from transpooler.common import USER_ERROR, UserError
from transpooler.launch.cluster.hosts import Host
from transpooler.launch.cluster.targets.base import DEFAULT_PORT, Target
from transpooler.launch.ranks.watcher import RANK_MODULE
from transpooler.trainer.config import Config
from transpooler.trainer.config.cluster import KubernetesConfig

CONFIG_FOLDER = "/etc/transpooler"
RANKS = "ranks"
GRACE_S = 300


class Kubernetes(Target):
    """A manifest; it is printed, and `kubectl` hands it over."""

    name = "kubernetes"
    about = "a manifest to apply: JobSet or Kubeflow TrainJob"
    submits = True

    def hosts(self, config: Config) -> list[Host]:
        raise UserError(f"target {self.name} starts no ranks here; leave --in-allocation out to print the manifest")

    def describe(self, config: Config, settings: Sequence[str]) -> str:
        """The YAML of all objects; `settings` are in `config` already."""
        import yaml

        return yaml.safe_dump_all(objects(config), sort_keys=False, width=120)

    submit = describe


def objects(config: Config) -> list[dict[str, Any]]:
    """ConfigMap and job. UserError where a setting is missing without which no pod could start."""
    from transpooler.trainer.config.load import config_to_yaml

    site = config.cluster.kubernetes
    if not site.image:
        raise UserError("cluster.kubernetes.image is not set; name a container image that holds transpooler")
    metadata = {"name": site.name, "namespace": site.namespace}
    data = {"config.yaml": config_to_yaml(config)}
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    return [settings, _jobset(config, metadata) if site.kind == "jobset" else _trainjob(config, metadata)]


def _jobset(config: Config, metadata: Mapping[str, str]) -> dict[str, Any]:
    site, nodes = config.cluster.kubernetes, config.cluster.nodes
    master = f"{site.name}-{RANKS}-0-0.{site.name}"
    slots = {f"node{number}": list(range(_ranks_per_node(config))) for number in range(nodes)}
    # DeepSpeed's launcher for one node, because it passes a rank's exit code on; torchrun ends with 1 whatever it was.
    launcher = [
        *("python", "-m", "deepspeed.launcher.launch", "--node_rank=$(JOB_COMPLETION_INDEX)"),
        f"--world_info={base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()}",
        *(f"--master_addr={master}", f"--master_port={_port(config)}"),
        *("--no_local_rank", "--module", RANK_MODULE, f"{CONFIG_FOLDER}/config.yaml"),
    ]
    container: dict[str, Any] = {
        "name": "train",
        "image": site.image,
        "command": launcher,
        "env": _environment(config),
        "ports": [{"containerPort": _port(config)}],
        "volumeMounts": _mounts(site),
    }
    if site.volume_claim:
        container["workingDir"] = site.mount_path
    if resources := _resources(site):
        container["resources"] = {"limits": resources}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": _volumes(site),
    }
    on_mistake = {"containerName": "train", "operator": "In", "values": [USER_ERROR]}
    job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": on_mistake}]},
        "template": {"spec": pod},
    }
    mistake = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": dict(metadata),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": config.cluster.max_restarts, "rules": [mistake]},
            "replicatedJobs": [{"name": RANKS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _trainjob(config: Config, metadata: Mapping[str, str]) -> dict[str, Any]:
    """It says how many nodes and ranks; its runtime tells pods how to find each other (torchrun's PET_* variables)."""
    site = config.cluster.kubernetes
    folder = shlex.quote(site.mount_path if site.volume_claim else ".")
    start = f"cd {folder} && exec torchrun -m {RANK_MODULE} {CONFIG_FOLDER}/config.yaml"
    trainer: dict[str, Any] = {
        "image": site.image,
        "command": ["bash", "-c", start],
        "env": _environment(config),
        "numNodes": config.cluster.nodes,
        "numProcPerNode": _ranks_per_node(config),
    }
    if resources := _resources(site):
        trainer["resourcesPerNode"] = {"limits": resources}
    pod = {
        "terminationGracePeriodSeconds": GRACE_S,
        "volumes": _volumes(site),
        "containers": [{"name": "node", "volumeMounts": _mounts(site)}],
    }
    patch = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    template = {"spec": {"replicatedJobs": [patch]}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": dict(metadata),
        "spec": {
            "runtimeRef": {"name": site.runtime},
            "trainer": trainer,
            "runtimePatches": [{"manager": "transpooler.io/launch", "trainingRuntimeSpec": {"template": template}}],
        },
    }


def _ranks_per_node(config: Config) -> int:
    return config.cluster.processes_per_node or config.cluster.kubernetes.gpus_per_node or 1


def _port(config: Config) -> int:
    return config.cluster.master_port or DEFAULT_PORT


def _environment(config: Config) -> list[dict[str, str]]:
    """The configuration's variables, without those of this shell: its paths mean nothing in a container."""
    variables = {"PYTHONSAFEPATH": "1", **config.cluster.environment}  # the volume's files are not imported
    return [{"name": name, "value": value} for name, value in sorted(variables.items())]


def _resources(site: KubernetesConfig) -> dict[str, str]:
    wanted = {"nvidia.com/gpu": site.gpus_per_node, "cpu": site.cpus_per_node, "memory": site.memory_per_node}
    return {name: str(amount) for name, amount in wanted.items() if amount}


def _volumes(site: KubernetesConfig) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": site.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": site.shared_memory}},
    ]
    if site.volume_claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": site.volume_claim}})
    return volumes


def _mounts(site: KubernetesConfig) -> list[dict[str, str]]:
    mounts = [{"name": "config", "mountPath": CONFIG_FOLDER}, {"name": "shm", "mountPath": "/dev/shm"}]
    return mounts + ([{"name": "data", "mountPath": site.mount_path}] if site.volume_claim else [])
