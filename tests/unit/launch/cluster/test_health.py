"""The judgements of `transpooler doctor`, and manifests for Kubernetes against the published models."""

import base64
import json

import pytest
import yaml

from transpooler.common import UserError
from transpooler.launch.cluster.doctor.health import find_slow_hosts, judge_network
from transpooler.launch.cluster.targets import TARGETS
from transpooler.trainer.config import load_config

SETTINGS = [
    *("cluster.nodes=4", "cluster.environment={NCCL_DEBUG: INFO}", "cluster.kubernetes.gpus_per_node=8"),
    *("cluster.kubernetes.image=registry/transpooler:1", "cluster.kubernetes.volume_claim=shared"),
]


def pairs(slow: int | None, hosts: int = 4) -> list[dict]:
    return [
        {"ranks": [a, b], "latency_ms": 20.0 if slow in (a, b) else 0.2, "bandwidth_mib_s": 900.0}
        for a in range(hosts)
        for b in range(a + 1, hosts)
    ]


def test_the_slow_host_is_named_and_nobody_else() -> None:
    hosts = ["a", "b", "c", "d"]
    assert find_slow_hosts(hosts, pairs(None)) == {}
    assert find_slow_hosts(hosts, pairs(2)).keys() == {"c"}
    assert find_slow_hosts(hosts[:2], pairs(1, hosts=2)) == {}, "with two hosts nobody can tell"
    thin = [row | {"bandwidth_mib_s": 90.0 if 3 in row["ranks"] else 900.0} for row in pairs(None)]
    assert find_slow_hosts(hosts, thin) == {"d": "at most 90 MiB/s to any other host, 900 MiB/s between the others"}
    network = {"pairs": pairs(2), "all_reduce_mib": 16, "all_reduce_s": 0.5, "correct": False, "backend": "gloo"}
    rows = list(judge_network(hosts, network))
    assert {row.host for row in rows if row.check == "slow host"} == {"c"}
    assert rows[-1].state == "FAILS"


def test_a_jobset_is_valid_and_says_what_was_asked() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="the dev extra holds kubeflow-trainer-api")
    settings, jobset = yaml.safe_load_all(TARGETS["kubernetes"].describe(load_config([], SETTINGS), []))
    models.JobsetV1alpha2JobSet.from_dict(jobset)
    assert _unknown(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == []
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert {"name": "PYTHONSAFEPATH", "value": "1"} in container["env"]
    assert "--master_addr=transpooler-ranks-0-0.transpooler" in container["command"]
    (world,) = (word.partition("=")[2] for word in container["command"] if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {f"node{number}": [*range(8)] for number in range(4)}
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert yaml.safe_load(settings["data"]["config.yaml"])["cluster"]["nodes"] == 4


def test_a_trainjob_is_valid() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="the dev extra holds kubeflow-trainer-api")
    config = load_config([], [*SETTINGS, "cluster.kubernetes.kind=trainjob"])
    _, job = yaml.safe_load_all(TARGETS["kubernetes"].describe(config, []))
    read = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert _unknown(job, read.to_dict()) == []
    assert (read.spec.trainer.num_nodes, read.spec.trainer.num_proc_per_node) == (4, 8)
    assert {"name": "PYTHONSAFEPATH", "value": "1"} in job["spec"]["trainer"]["env"]


def test_a_manifest_without_an_image() -> None:
    with pytest.raises(UserError, match=r"cluster\.kubernetes\.image is not set"):
        TARGETS["kubernetes"].describe(load_config([], []), [])


def _unknown(given, kept, path: str = "") -> list[str]:
    """Keys that the model dropped because it does not know them."""
    if isinstance(given, dict):
        if not isinstance(kept, dict):
            return [path]
        return [item for key, value in given.items() for item in _unknown(value, kept.get(key), f"{path}.{key}")]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return [path]
        return [item for old, new in zip(given, kept, strict=True) for item in _unknown(old, new, path)]
    return [] if kept == given else [path]
