"""The Kubernetes objects: what KubeRay's own schemas say of them, and what no schema knows."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dmlscale.config.secrets import is_secret_name
from tests.jobs.files import read
from tests.jobs.schemas.extract import FILE

JOB, CLUSTER, STORAGE = read("kuberay/rayjob.yaml"), read("kuberay/raycluster.yaml"), read("kuberay/storage.yaml")
CLUSTERS = {"rayjob": JOB["spec"]["rayClusterSpec"], "raycluster": CLUSTER["spec"]}


def strict(schema: Any) -> Any:
    """The schema, in which objects have no other fields than those it names: as the server takes them by default."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    keeps_others = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(inner.get("properties"), dict) and inner.get("type") == "object" and not keeps_others:
        inner.setdefault("additionalProperties", False)
    return inner


DEFINITIONS = strict(json.loads(FILE.read_text())["$defs"])


def mistakes(kind: str, instance: Any) -> list[str]:
    validator = Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": DEFINITIONS})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def test_the_schemas_are_schemas() -> None:
    Draft202012Validator.check_schema({"$defs": DEFINITIONS})
    assert set(DEFINITIONS) >= {"RayCluster", "RayJob"}


@pytest.mark.parametrize("instance", [JOB, CLUSTER], ids=["rayjob", "raycluster"])
def test_objects_follow_the_schema(instance: Any) -> None:
    assert instance["apiVersion"] == "ray.io/v1"
    assert mistakes(instance["kind"], instance) == []


def misspelled_field(job: Any) -> None:
    job["spec"]["backofLimit"] = 3


def misspelled_field_of_a_pod(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []


def number_where_text_is_wanted(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 0


def text_where_a_number_is_wanted(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "4"


def unknown_way_to_sign_in(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "password"


def no_name_of_the_group(job: Any) -> None:
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]


def impossible_quantity(job: Any) -> None:
    job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "much"


FAULTS = (
    misspelled_field,
    misspelled_field_of_a_pod,
    number_where_text_is_wanted,
    text_where_a_number_is_wanted,
    unknown_way_to_sign_in,
    no_name_of_the_group,
    impossible_quantity,
)


@pytest.mark.parametrize("plant", FAULTS)
def test_the_schema_finds_faults(plant: Callable[[Any], None]) -> None:
    job = copy.deepcopy(JOB)  # pieces that the file states once are one object: this keeps them apart
    plant(job)
    assert mistakes("RayJob", job)


def job_with_claim(claim: Any) -> Any:
    volume = {"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return {"spec": {"submitterPodTemplate": {"spec": {"containers": [], "volumes": [volume]}}}}


def test_the_claim_follows_the_schema() -> None:
    """Pods may carry a claim of their own, so KubeRay's schema says what a claim is."""
    assert (STORAGE["apiVersion"], STORAGE["kind"]) == ("v1", "PersistentVolumeClaim")
    assert mistakes("RayJob", job_with_claim(STORAGE["spec"])) == []
    assert mistakes("RayJob", job_with_claim(STORAGE["spec"] | {"accessMode": "ReadWriteMany"}))
    assert STORAGE["spec"]["accessModes"] == ["ReadWriteMany"]


def pods(cluster: Any) -> dict[str, Any]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {group.get("groupName", "head"): group["template"]["spec"] for group in groups}


def all_pods() -> Iterator[Any]:
    for cluster in CLUSTERS.values():
        yield from pods(cluster).values()
    yield JOB["spec"]["submitterPodTemplate"]["spec"]


@pytest.mark.parametrize("pod", [*all_pods()])
def test_pods_may_do_little(pod: Any) -> None:
    """The rules that Kubernetes calls the restricted standard, and no way to talk to its API."""
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["fsGroup"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        resources = container["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_only_who_has_the_token_gets_in(cluster: Any) -> None:
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_secrets_come_by_reference(cluster: Any) -> None:
    for pod in pods(cluster).values():
        environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        secret = [key for key in environment if is_secret_name(key)]
        assert "MLFLOW_TRACKING_PASSWORD" in secret
        assert all("secretKeyRef" in environment[key]["valueFrom"] for key in secret)
        assert environment["MLFLOW_TRACKING_URI"]["value"].startswith("http")


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_pods_share_storage_and_have_memory_to_share(cluster: Any) -> None:
    for pod in pods(cluster).values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == STORAGE["metadata"]["name"]
        memory = mounts["/dev/shm"]["emptyDir"]
        assert memory["medium"] == "Memory"
        size = int(memory["sizeLimit"].removesuffix("Gi")) * 2**30
        stores = [group["rayStartParams"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
        assert all(2 * int(store["object-store-memory"]) < size for store in stores)


def test_both_files_describe_the_same_cluster() -> None:
    """The job's has what saves its one run before a pod stops, and nothing else more."""
    job = copy.deepcopy(CLUSTERS["rayjob"])
    for pod in pods(job).values():
        del pod["terminationGracePeriodSeconds"]
        del pod["containers"][0]["lifecycle"]
    assert job == CLUSTERS["raycluster"]


def test_the_job_asks_for_the_gpus_that_its_cluster_has() -> None:
    (group,) = CLUSTERS["rayjob"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    workers = re.search(r"resources\.workers=(\d+)", JOB["spec"]["entrypoint"])
    assert workers is not None
    assert int(workers[1]) == group["replicas"] * gpus
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert CLUSTERS["rayjob"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_stop_leaves_time_to_save() -> None:
    folder, name = (re.search(rf"{key}=(\S+)", JOB["spec"]["entrypoint"]) for key in ("run.folder", "run.name"))
    assert folder is not None
    assert name is not None
    assert "--resume" in JOB["spec"]["entrypoint"].split()  # a new cluster goes on with the run
    for pod in pods(CLUSTERS["rayjob"]).values():
        container = pod["containers"][0]
        *program, run, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert program == ["bash", "/app/jobs/kuberay/save_before_stop.sh"]
        assert run == f"{folder[1]}/{name[1]}"
        assert int(seconds) + 20 < pod["terminationGracePeriodSeconds"]
        (wait,) = [entry["value"] for entry in container["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
        assert int(wait) >= 60
