"""`cache manifest` and `student manifest`: a job as YAML for `kubectl apply`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from jobs.cluster.manifest import InPods
    from jobs.files.cache_job import CacheJob
    from jobs.files.student_job import StudentJob

    Job = TypeVar("Job", CacheJob, StudentJob)

HEAD = """\
# {command}
# on {workers} in pods, by Dask's operator. What it writes: {written}
#
#   kubectl apply -f FILE                     the operator starts the scheduler, the workers and the command
#   kubectl logs -f {name}-runner
#   kubectl get daskjob {name}                Successful: exit status 0; Failed: any other, which is told by
#   kubectl get pod {name}-runner -o jsonpath='{{.status.containerStatuses[0].state.terminated.exitCode}}'
#   kubectl delete -f FILE                    before the next start, which goes on with what is missing
#
# 75, no scheduler or no workers yet, is tried again each minute for an hour.
"""


def show_manifest(
    job: Path,
    kind: type[Job],
    program: tuple[str, str],
    at_once: Callable[[bool], int],
    written: Callable[[Job], Mapping[str, str]],
    *,
    as_json: bool,
) -> int:
    """Print the manifest of a job; return the exit status.

    Args:
        job: its file.
        kind: what it is.
        program: what the command's pod runs on it.
        at_once: work that a worker does at a time, with a GPU or without.
        written: what the job writes, by what it is.
        as_json: whether to print JSON, which `kubectl` takes too.

    Raises:
        BadRequest: the job is not one for Kubernetes, or what it writes would be lost.
    """
    from jobs.cluster.crds import check
    from jobs.cluster.manifest import InPods, manifest
    from jobs.files.reading import read_job
    from jobs.show import terminal

    read = read_job(job, kind)
    options = read.cluster
    if options.pods is not None:
        read = read_job(job, kind, Path(options.pods.folder))  # its paths as they are in a pod
    place = PurePosixPath("/" if options.pods is None else options.pods.folder) / job.name
    in_pods = InPods(
        name=(options.pods and options.pods.name) or _name(job),
        command=(*program, str(place)),
        at_once=at_once(bool(options.gpus)),
        written=written(read),
    )
    objects = manifest(options, in_pods)
    checked = check("DaskJob", objects[-1])
    if checked is None:
        terminal.errors.print(
            "note: not checked against the operator's schema, for the extra `kubernetes` is not installed; "
            "`kubectl apply --dry-run=server` checks it too",
            markup=False,
        )
    if as_json:
        terminal.print_json({"apiVersion": "v1", "kind": "List", "items": objects})
        return 0
    terminal.out.print(_head(in_pods, options.workers or 0) + _yaml(objects), markup=False, soft_wrap=True, end="")
    return 0


def _name(job: Path) -> str:
    """Return the name of a job file as one of Kubernetes, short enough for the operator."""
    name = re.sub(r"[^a-z0-9]+", "-", job.name.removesuffix(".toml").lower()).strip("-")
    return (name if name[:1].isalpha() else f"job-{name}")[:53].rstrip("-")


def _head(job: InPods, workers: int) -> str:
    written = ", ".join(f"{what} {place}" for what, place in job.written.items())
    count = f"{workers} worker{'s' * (workers != 1)}"
    return HEAD.format(command=" ".join(job.command), workers=count, written=written, name=job.name)


def _yaml(objects: list[dict[str, Any]]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes a script as its lines, and repeats what is there twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, explicit_start=True, width=100)
