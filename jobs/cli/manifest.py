"""`cache manifest` and `student manifest`: a job as YAML for `kubectl apply`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.kubernetes.manifest import InPods

HEAD = """\
# {command}
# on {workers} in pods, started by Dask's operator. Written: {written}
#
#   kubectl apply -f FILE
#   kubectl logs -f {name}-runner
#   kubectl get daskjob {name}        # Successful: exit status 0; Failed: any other,
#   kubectl get pod {name}-runner -o jsonpath='{{.status.containerStatuses[0].state.terminated.exitCode}}'
#   kubectl delete -f FILE            # before the next start, which goes on with what is missing
#
# Exit status 75, such as no workers yet, is tried again each minute for an hour.
"""


def show_manifest(
    job: Path,
    kind: type[Any],
    program: tuple[str, str],
    at_once: tuple[int, int],
    written: Callable[[Any], Mapping[str, str]],
    *,
    as_json: bool,
) -> int:
    """Print the manifest of a job; return the exit status.

    Args:
        job: its file.
        kind: what it is.
        program: what the command's pod runs on it.
        at_once: work that a worker does at a time, without a GPU and with one.
        written: what the job writes, by what it is.
        as_json: whether to print JSON, which `kubectl` takes too.

    Raises:
        BadRequest: the job is not one for Kubernetes, or what it writes would be lost.
    """
    from jobs.files.reading import read_job
    from jobs.kubernetes.crds import check
    from jobs.kubernetes.manifest import InPods, manifest
    from jobs.show import terminal

    read = read_job(job, kind)
    options = read.cluster
    if options.pods is not None:
        read = read_job(job, kind, Path(options.pods.folder))  # its paths as they are in a pod
    place = PurePosixPath("/" if options.pods is None else options.pods.folder) / job.name
    in_pods = InPods(
        name=(options.pods and options.pods.name) or _name(job),
        command=(*program, str(place)),
        at_once=at_once[bool(options.gpus)],
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

    # repeats what is there twice, for references are hard to read
    own: Any = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})

    def lines(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    own.add_representer(str, lines)
    text: str = yaml.dump_all(objects, Dumper=own, sort_keys=False, explicit_start=True, width=100)
    return text
