"""A job as YAML for Dask's operator: what the operator's own schemas and code, and Kubernetes' client, make of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from jobs.kubernetes.crds import PACKAGE, check
from jobs.kubernetes.manifest import AGAIN, TRIES, in_pod
from storage.errors import BadRequest
from tests.conftest import Program
from tests.jobs.schedule.place import Place

CACHE_JOB = """
cache = "../caches/digits"
[[dataset]]
name = "digits"
kind = "digits"
rows_per_shard = 600
"""
STUDENT_JOB = """
cache = "s3://bucket/digits"
runs = "../runs/digits"
train = "digits/train"
validation = "digits/validation"
[[student]]
name = "mlp"
architecture = "mlp"
objective = [{ loss = "labels" }]
"""
CLUSTER = """
[cluster]
kind = "kubernetes"
workers = 1
memory = "2 GiB"
[cluster.pods]
image = "stillroom:1"
folder = "/data/jobs"
volumes = [{ claim = "stillroom", path = "/data" }]
"""
WHOLE = """
[cluster]
kind = "kubernetes"
workers = 4
processors = 8
memory = "32 GiB"
gpus = 1
[cluster.pods]
image = "registry.example.org:5000/team/stillroom:1@sha256:0123456789abcdef"
folder = "/opt/jobs"
volumes = [{ claim = "data", path = "/data", read_only = true }, { claim = "runs", path = "/opt/runs" }]
secrets = ["object-store", "hub"]
environment = { AWS_REGION = "eu-central-1", TOKENIZERS_PARALLELISM = "false" }
name = "night"
namespace = "team"
service_account = "reader"
pull_secrets = ["registry"]
gpu = "nvidia.com/mig-1g.10gb"
nodes = { "example.org/gpu" = "a100" }
tolerations = ["nvidia.com/gpu"]
command_memory = "1 GiB"
"""


def write(folder: Path, text: str, name: str = "Big job.cache.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def as_kubernetes_reads(values: dict[str, Any]) -> Any:
    """Return a NetworkPolicy as Kubernetes' own client understands it."""
    from kubernetes.client import ApiClient

    client = ApiClient()
    read = client.deserialize(json.dumps(values), "V1NetworkPolicy", "application/json")
    return client.sanitize_for_serialization(read)


def test_a_cache_job_is_one_that_the_operator_takes(tmp_path: Path, program: Program) -> None:
    ended = program("cache", "manifest", write(tmp_path, CACHE_JOB + CLUSTER))
    assert (ended.code, ended.err) == (0, "")
    policy, task = yaml.safe_load_all(ended.out)
    name = task["metadata"]["name"]
    assert name == policy["metadata"]["name"] == "big-job-cache"
    assert as_kubernetes_reads(policy) == policy
    assert check("DaskJob", task) == check("DaskCluster", task["spec"]["cluster"]) == f"{PACKAGE} 2026.3.0"
    (command,) = task["spec"]["job"]["spec"]["containers"]
    assert command["command"][-3:] == ["cache", "build", "/data/jobs/Big job.cache.toml"]
    assert "cache /data/caches/digits" in ended.out.splitlines()[1]
    assert max(map(len, ended.out.splitlines())) <= 120


def test_a_student_job_has_all_that_it_names_and_its_scheduler_nothing(tmp_path: Path, program: Program) -> None:
    ended = program("student", "manifest", write(tmp_path, STUDENT_JOB + WHOLE), "--json")
    _, task = json.loads(ended.out)["items"]
    assert (ended.code, task["metadata"]) == (0, {"name": "night", "namespace": "team"})
    worker, scheduler = (task["spec"]["cluster"]["spec"][part] for part in ("worker", "scheduler"))
    assert worker["replicas"] == 4
    (container,) = worker["spec"]["containers"]
    assert container["command"][-2:] == ["--nthreads", "1"]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "32768Mi"},
        "limits": {"cpu": "8", "memory": "32768Mi", "nvidia.com/mig-1g.10gb": "1"},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "object-store"}}, {"secretRef": {"name": "hub"}}]
    assert {"name": "AWS_REGION", "value": "eu-central-1"} in container["env"]
    assert container["volumeMounts"] == [
        {"name": "volume-0", "mountPath": "/data", "readOnly": True},
        {"name": "volume-1", "mountPath": "/opt/runs"},
    ]
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in worker["spec"]["volumes"]] == ["data", "runs"]
    assert worker["spec"]["nodeSelector"] == {"example.org/gpu": "a100"}
    assert worker["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert worker["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    command = task["spec"]["job"]["spec"]
    assert (command["serviceAccountName"], command["restartPolicy"]) == ("reader", "Never")
    assert command["containers"][0]["resources"]["limits"] == {"memory": "1024Mi"}
    assert {"volumes", "serviceAccountName", "nodeSelector"} & set(scheduler["spec"]) == set()
    assert {"envFrom", "volumeMounts"} & set(scheduler["spec"]["containers"][0]) == set()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"/data" }', '"/other" }', "the cache would be gone with the pod that wrote it"),
        ('"/data" }', '"/data", read_only = true }', "the cache is to be written where nothing can be"),
        (
            '"/data" }',
            '"/data" }, { claim = "old", path = "/data/caches", read_only = true }',
            "lies on /data/caches, read-only",
        ),
        ("[cluster.pods]", '[cluster.pods]\nenvironment = { DASK_WORKER_NAME = "w" }', "is what Dask's operator sets"),
        ("[cluster.pods]", '[cluster.pods]\ntolerations = [""]', "cluster.pods.tolerations"),
        ('"stillroom:1"', '"me:word@registry/stillroom"', "it is no image"),
        ('folder = "/data/jobs"', 'folder = "jobs"', "'jobs' is no folder of a pod"),
        ('folder = "/data/jobs"', 'folder = "/data/../etc"', "is no folder of a pod"),
        ('memory = "2 GiB"', 'memory = "2"', "'2' is no amount of memory"),
        ('memory = "2 GiB"', "", "needs `memory` of its pods"),
        ('memory = "2 GiB"', 'memory = "2 GiB"\nqueue = "gpu"', "`queue` goes with a batch scheduler"),
        ('kind = "kubernetes"', 'kind = "local"', '[cluster.pods] goes with kind = "kubernetes"'),
        ("[cluster.pods]", '[cluster.pods]\nname = "A_b"', "cluster.pods.name"),
        ("[cluster.pods]", '[cluster.pods]\nsecrets = ["KEY=abc"]', "cluster.pods.secrets"),
        ('path = "/data" }', 'path = "/data" }, { claim = "b", path = "/data" }', "two `volumes` are at /data"),
        *(
            ("[cluster.pods]", f'[cluster.pods]\nenvironment = {{ {name} = "{value}" }}', f"`{name}` in `environment`")
            for name, value in {
                "AWS_SECRET_ACCESS_KEY": "x",
                "HF_TOKEN": "x",
                "PROXY": "http://me:word@proxy:3128",
                "ID": "AKIAIOSFODNN7EXAMPLE",
                "OTHER": "ghp_abcdefghij0123456789",
                "SALT": "bPxRfiCYEXAMPLEKEYwJalrXUtnFEMIK7MDENG00",
            }.items()
        ),
    ],
)
def test_what_would_lose_data_or_tell_a_secret_is_refused(
    tmp_path: Path, program: Program, old: str, new: str, told: str
) -> None:
    assert old in CLUSTER
    ended = program("cache", "manifest", write(tmp_path, CACHE_JOB + CLUSTER.replace(old, new, 1)))
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert [secret for secret in ("word", "ghp_", "AKIA", "bPxR") if secret in ended.err] == []


def test_a_job_that_is_none_for_kubernetes_has_no_manifest(tmp_path: Path, program: Program) -> None:
    ended = program("cache", "manifest", write(tmp_path, CACHE_JOB))
    assert (ended.code, ended.out) == (2, "")
    assert 'kind = "local" in [cluster]' in ended.err


def test_outside_of_a_pod_the_job_says_how_it_is_started(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    for name, command, text in (("cache", "build", CACHE_JOB), ("student", "train", STUDENT_JOB)):
        ended = program(name, command, write(tmp_path, text + CLUSTER))
        assert (ended.code, 'kind = "kubernetes" runs in pods' in ended.err) == (2, True)


def test_within_its_pod_a_job_is_one_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://night-scheduler.team.svc.cluster.local:8786")
    options = read_job(write(tmp_path, STUDENT_JOB + WHOLE), StudentJob).cluster
    seen = in_pod(options)
    assert seen == type(options)(kind="address", address=os.environ["DASK_SCHEDULER_ADDRESS"], threads=8)
    assert in_pod(seen) == seen


def test_a_manifest_is_checked_where_the_operators_package_is_installed(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="another schema") as refused:
        check("DaskCluster", {"spec": {"worker": {"replicas": "2", "spec": {"containers": []}}}})
    assert refused.value.found == "$.spec: 'scheduler' is a required property"
    for wrong in ({"replicaz": 2}, {"replicas": "2"}):
        with pytest.raises(BadRequest, match="another schema"):
            check("DaskWorkerGroup", {"spec": {"cluster": "a", "worker": {"spec": {"containers": []}} | wrong}})
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    ended = program("cache", "manifest", write(tmp_path, CACHE_JOB + CLUSTER))
    assert ended.code == 0
    assert "not checked" in ended.err
    assert "extra `kubernetes`" in ended.err


def test_the_command_of_a_pod_tries_again_on_75_and_passes_a_signal_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    again = ("sh", "-c", AGAIN, "sh", "cache", "build", "job.toml")
    place.answer(*["cache build job.toml=75"] * 2)
    assert place.run(*again, WAIT_S="0")[0] == 0
    assert place.calls == ["cache build job.toml"] * 3
    place.answer("cache build job.toml=65")
    assert place.run(*again)[0] == 65
    assert len(place.calls) == 1
    place.program("cache", "#!/bin/sh\nexit 75\n")
    assert place.run(*again, WAIT_S="0")[0] == 75  # in the end
    for script in ("trap 'exit 143' TERM; echo waits; while :; do sleep 0.05; done", "echo waits; exit 75"):
        place.program("cache", f"#!/bin/sh\n{script}\n")
        with place.start(*again) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) in (
                (143,) if "trap" in script else (75, 143)
            )  # told before its end, or after
    assert TRIES == 60


@contextmanager
def started(container: dict[str, Any], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start what a container runs, here; the address of its scheduler is not one of this machine."""
    own = {each["name"]: each["value"] for each in container.get("env", [])} | variables
    programs = Path(sys.executable).parent
    command = [own.get(word.removeprefix("$(").removesuffix(")"), word) for word in container["command"]]
    environment = {**os.environ, **own, "PATH": f"{programs}:{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_what_the_operator_makes_of_it_builds_the_cache(tmp_path: Path, program: Program) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that the operator imports
        from dask_kubernetes.operator.controller import controller as operator

    pods = CLUSTER.replace("/data/jobs", str(tmp_path)).replace("/data", str(tmp_path))
    job = write(tmp_path, CACHE_JOB.replace("../", "") + pods, "night.cache.toml")
    _, task = yaml.safe_load_all(program("cache", "manifest", job).out)
    spec, about = task["spec"], {"annotations": {}, "labels": {}}
    workers = operator.build_worker_deployment_spec(
        "night-default", "team", "night-cache", "0", spec["cluster"]["spec"]["worker"]["spec"], **about
    )
    runner = operator.build_job_pod_spec("night-cache", "night-cache", "team", spec["job"]["spec"], **about)
    scheduler = spec["cluster"]["spec"]["scheduler"]["spec"]["containers"][0]
    scheduler["command"] += ["--port", "0", "--dashboard-address", "127.0.0.1:0", "--host", "127.0.0.1"]
    policy, allowed = {"dask.org/cluster-name": "night-cache"}, [workers["spec"]["template"], runner]
    assert all(policy.items() <= pod["metadata"]["labels"].items() for pod in allowed)  # who may speak to each other
    with ExitStack() as stack:
        dask = stack.enter_context(started(scheduler))
        assert dask.stderr is not None
        address = next(line.split()[-1] for line in dask.stderr if "Scheduler at:" in line)
        containers = [pod["spec"]["containers"][0] for pod in allowed]
        assert all("DASK_SCHEDULER_ADDRESS" in {each["name"] for each in one["env"]} for one in containers)
        _, command = (stack.enter_context(started(one, DASK_SCHEDULER_ADDRESS=address)) for one in containers)
        assert command.wait(timeout=120) == 0
    assert program("cache", "status", tmp_path / "caches/digits").code == 0
