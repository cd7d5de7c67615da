"""A job as objects of Kubernetes: a DaskJob for the operator of Dask, and who may speak to its pods.

The operator starts a scheduler, the workers, and the command in a pod of its own, which finds the scheduler through
DASK_SCHEDULER_ADDRESS; there `kind = "kubernetes"` is `kind = "address"`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from pydantic import ByteSize, TypeAdapter

from jobs.cluster.batch.submitting import QUIET
from jobs.cluster.opening import WORKER_TTL
from jobs.files.cluster_options import ClusterOptions
from jobs.files.pod_options import PodOptions
from storage.errors import BadRequest

AnyCluster = TypeVar("AnyCluster", bound=ClusterOptions)
Values = dict[str, Any]

ADDRESS = "DASK_SCHEDULER_ADDRESS"  # which the operator sets
GRACE_S = 120  # to commit, or to write a checkpoint
SCHEDULING = {  # as a scheduler in the command's own process has it (jobs.cluster.opening)
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": WORKER_TTL,
}
TRIES = 60  # of the command while it ends with 75, a minute apart: nodes with GPUs may be a while in coming
# Process 1 hears only signals that it has a trap for, and a shell would leave its child behind: it passes them on.
AGAIN = f"""\
tries=0
while :; do
    child='' left=''
    trap 'told=yes left=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
    "$@" & child=$!
    if [ -n "$left" ]; then kill -TERM "$child"; fi
    told=yes
    while [ -n "$told" ]; do told=''; status=0; wait "$child" || status=$?; done
    tries=$((tries + 1))
    trap 'kill "$child" 2>/dev/null; exit 143' TERM
    if [ -n "$left" ] || [ "$status" != 75 ] || [ "$tries" = {TRIES} ]; then exit "$status"; fi
    sleep "${{WAIT_S:-60}}" & child=$!
    wait "$child"
done
"""


class InPods(NamedTuple):
    """What a job is in its pods.

    Attributes:
        name: of the DaskJob.
        command: the program, its command, and the job file.
        at_once: work that a worker does at a time.
        written: what the job writes, by what it is: addresses, or paths.
    """

    name: str
    command: Sequence[str]
    at_once: int
    written: Mapping[str, str]


def in_pod(options: AnyCluster) -> AnyCluster:
    """Return a cluster as this process sees it: within a pod of Kubernetes, a scheduler at an address.

    Raises:
        BadRequest: the job is one for Kubernetes, and this is no pod of its operator.
    """
    if options.kind != "kubernetes":
        return options
    if (address := os.environ.get(ADDRESS)) is None:
        raise BadRequest(
            'kind = "kubernetes" runs in pods',
            found=f"no {ADDRESS}, which Dask's operator sets there",
            do="cache manifest JOB.toml | kubectl apply -f -    # of a student job: student manifest",
        )
    own = {"kind": "address", "address": address, "threads": options.threads or options.processors or 1}
    return options.model_copy(update=own | dict.fromkeys(("workers", "memory", "processors", "gpus", "pods")))


def manifest(options: ClusterOptions, job: InPods) -> list[Values]:
    """Return the objects of a job, as `kubectl apply` takes them.

    Raises:
        BadRequest: the job is not one for Kubernetes, or writes what would be gone with its pod.
    """
    pods = options.pods
    if options.kind != "kubernetes" or pods is None:
        raise BadRequest(
            "a manifest is of a job for Kubernetes",
            found=f'kind = "{options.kind}" in [cluster]',
            expected='kind = "kubernetes", and [cluster.pods]',
        )
    for what, place in job.written.items():
        _check_kept(what, place, pods)
    name = {"name": job.name} | ({} if pods.namespace is None else {"namespace": pods.namespace})
    own = {"matchLabels": {"dask.org/cluster-name": job.name}}
    task = {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskJob",
        "metadata": name,
        "spec": {
            "job": {"spec": _command(pods, job)},
            "cluster": {"spec": {"worker": _workers(options, pods, job.at_once), "scheduler": _scheduler(pods, job)}},
        },
    }
    # Who reaches a scheduler or a worker can run code there: nobody but the pods of this job.
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": name,
        "spec": {"podSelector": own, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": own}]}]},
    }
    return [policy, task]


def _check_kept(what: str, place: str, pods: PodOptions) -> None:
    """Raise BadRequest if a place is neither in an object store nor on a volume that can be written."""
    within = [volume for volume in pods.volumes if PurePosixPath(place).is_relative_to(volume.path)]
    deepest = max(within, key=lambda volume: len(volume.path), default=None)  # one may be mounted in another
    if "://" in place or (deepest is not None and not deepest.read_only):
        return
    there = ", ".join(volume.path for volume in pods.volumes if not volume.read_only)
    raise BadRequest(
        f"the {what} would be gone with the pod that wrote it"
        if deepest is None
        else f"the {what} is to be written where nothing can be",
        found=f"{place}, which lies on {'no volume' if deepest is None else f'{deepest.path}, read-only'}",
        expected=f"a path below {there}" if there else "one of `volumes`, or an object store",
        do=f'volumes = [{{ claim = "NAME", path = "{PurePosixPath(place).parent}" }}] in [cluster.pods]',
    )


def _command(pods: PodOptions, job: InPods) -> Values:
    resources = {"requests": {"cpu": "1", "memory": _quantity(pods.command_memory)}}
    container = {"name": "command", "image": pods.image, "command": ["sh", "-c", AGAIN, "sh", *job.command]}
    return _pod(pods, container | _data(pods) | _resources(resources), data=True) | {"restartPolicy": "Never"}


def _workers(options: ClusterOptions, pods: PodOptions, at_once: int) -> Values:
    processors, memory = str(options.processors or 1), _quantity(options.memory or "")
    limits = {"cpu": processors} | ({pods.gpu: str(options.gpus)} if options.gpus else {})
    container = {
        "name": "worker",
        "image": pods.image,
        # a worker that its memory limit ends is replaced; one that Dask pauses stays paused
        "command": [
            *["dask", "worker", "--name", "$(DASK_WORKER_NAME)", "--memory-limit", "0", "--no-dashboard", "--nthreads"],
            str(at_once),
        ],
    }
    resources = _resources({"requests": {"cpu": processors, "memory": memory}, "limits": limits})
    return {
        "replicas": options.workers,
        "spec": _pod(pods, container | _data(pods, QUIET) | resources, data=True) | _nodes(pods),
    }


def _scheduler(pods: PodOptions, job: InPods) -> Values:
    ports = {"tcp-comm": 8786, "http-dashboard": 8787}  # as the operator knows them
    health = {"httpGet": {"port": "http-dashboard", "path": "/health"}}
    container = {
        "name": "scheduler",
        "image": pods.image,
        "command": ["dask", "scheduler", "--host", "0.0.0.0"],  # noqa: S104 - the policy says who reaches it
        "env": _variables(SCHEDULING),
        "ports": [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports.items()],
        "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 30},
        "livenessProbe": {**health, "initialDelaySeconds": 15, "periodSeconds": 20, "timeoutSeconds": 30},
    } | _resources({"requests": {"cpu": "1", "memory": _quantity(pods.command_memory)}})
    service = {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": job.name, "dask.org/component": "scheduler"},
        "ports": [
            {"name": port, "port": number, "targetPort": port, "protocol": "TCP"} for port, number in ports.items()
        ],
    }
    return {"spec": _pod(pods, container, data=False), "service": service}


def _pod(pods: PodOptions, container: Values, *, data: bool) -> Values:
    """Return a pod of one container; without data, it has no volume and is nobody."""
    pod: Values = {
        "containers": [container],
        "automountServiceAccountToken": False,  # nothing here speaks to Kubernetes
        "terminationGracePeriodSeconds": GRACE_S,
    }
    if pods.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pods.pull_secrets]
    if not data:
        return pod
    if pods.service_account is not None:
        pod["serviceAccountName"] = pods.service_account
    if pods.volumes:
        pod["volumes"] = [
            {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim}}
            for number, volume in enumerate(pods.volumes)
        ]
    return pod


def _nodes(pods: PodOptions) -> Values:
    tolerations = [{"key": key, "operator": "Exists"} for key in pods.tolerations]
    return {key: value for key, value in {"nodeSelector": pods.nodes, "tolerations": tolerations}.items() if value}


def _data(pods: PodOptions, own: Mapping[str, str] | None = None) -> Values:
    """Return what a container has that reads or writes data."""
    mounts = [
        {"name": f"volume-{number}", "mountPath": volume.path} | ({"readOnly": True} if volume.read_only else {})
        for number, volume in enumerate(pods.volumes)
    ]
    found = {
        "env": _variables({**(own or {}), **pods.environment}),
        "envFrom": [{"secretRef": {"name": name}} for name in pods.secrets],
        "volumeMounts": mounts,
    }
    return {key: value for key, value in found.items() if value}


def _variables(values: Mapping[str, str]) -> list[Values]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(resources: Values) -> Values:
    """Return resources whose memory is no more than what was asked for, so that a node is not overrun."""
    memory = {"memory": resources["requests"]["memory"]}
    return {"resources": resources | {"limits": memory | resources.get("limits", {})}}


def _quantity(text: str) -> str:
    """Return an amount of memory as Kubernetes has it.

    >>> _quantity("16 GiB"), _quantity("1 GB")
    ('16384Mi', '954Mi')
    """
    return f"{-(-TypeAdapter(ByteSize).validate_python(text) // 2**20)}Mi"
