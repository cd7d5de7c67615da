"""What `[cluster.pods]` may say: the pods of `kind = "kubernetes"`; what is secret is named, never written."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from storage.options import Options, holds_secret

OPERATORS = frozenset({"DASK_SCHEDULER_ADDRESS", "DASK_WORKER_NAME"})
SECRET_VALUE = re.compile(
    r"-----BEGIN|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\beyJ[\w-]+\.[\w-]+\."  # a private key; AWS; a JSON web token
    r"|\b(gh[a-z]|github_pat|glpat|hf|sk|xox[a-z])[-_]\w{16}"  # GitHub, GitLab, Hugging Face, OpenAI, Slack
    # a long run of letters of both cases and digits: what a generator of keys writes, and people do not
    r"|(?<![\w+=-])(?=[\w+=-]*[a-z])(?=[\w+=-]*[A-Z])(?=[\w+=-]*\d)[\w+=-]{32}"
)


def looks_secret(name: str, value: str) -> bool:
    """Return whether a variable holds what opens something: by its name, or by what its value looks like.

    >>> looks_secret("AWS_SECRET_ACCESS_KEY", "x"), looks_secret("TOKENIZERS_PARALLELISM", "false")
    (True, False)
    >>> looks_secret("PROXY", "http://me:word@proxy:3128"), looks_secret("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/token")
    (True, False)
    """
    if holds_secret(name, value):
        return True
    return SECRET_VALUE.search(value) is not None and not (name.endswith("_FILE") and value.startswith("/"))


def _amount(text: str) -> str:
    if re.fullmatch(r"[1-9]\d*(\.\d+)? ?[MGT]i?B", text) is None:
        raise ValueError(f"{text!r} is no amount of memory; write a number and its unit, such as 16 GiB")
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or path == "/":
        raise ValueError(f"{path!r} is no folder of a pod; write it from its root, such as /data")
    return path.rstrip("/")


def _image(image: str) -> str:
    if re.fullmatch(r"[a-z0-9][\w.\-/]*(:\d+/[\w.\-/]+)?(:[\w.\-]+)?(@sha256:[0-9a-f]+)?", image) is None:
        raise ValueError("it is no image; write registry/name:tag, and what opens the registry into `pull_secrets`")
    return image


Amount = Annotated[str, AfterValidator(_amount)]
"""An amount of memory, such as `16 GiB`."""

Named = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""The name of an object of Kubernetes."""

ClusterName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$")]
"""One short enough for the operator, which makes `NAME-scheduler` of it."""

PodFolder = Annotated[str, AfterValidator(_absolute)]
"""A folder of a pod, from its root."""


class VolumeOptions(Options):
    """A volume of every pod that reads or writes data.

    Attributes:
        claim: name of a PersistentVolumeClaim; of several nodes, one that they can all mount (ReadWriteMany).
        path: where it is in a pod.
        read_only: whether nothing is written there.
    """

    claim: Named
    path: PodFolder
    read_only: bool = False


class PodOptions(Options):
    """What every pod of a job has, but for the scheduler's, which sees no data and no secrets.

    Attributes:
        image: with Stillroom, the same for the command, the scheduler and the workers.
        folder: where the folder of this job file is in a pod; the job's relative paths begin there.
        volumes: what is mounted.
        secrets: names of Secrets, whose keys become variables.
        environment: variables that are no secret.
        name: of the DaskJob; by default that of the job file.
        namespace: by default that of `kubectl`.
        service_account: name of one; that is how a cloud gives pods a role.
        pull_secrets: names of Secrets by which the image is had.
        gpu: what a GPU is called, such as `nvidia.com/mig-1g.10gb`.
        nodes: labels that the node of a worker must have.
        tolerations: keys of taints that the node of a worker may have.
        command_memory: of the command's own pod, and of the scheduler's.
    """

    image: Annotated[str, AfterValidator(_image)]
    folder: PodFolder
    volumes: list[VolumeOptions] = Field(default=[])
    secrets: list[Named] = Field(default=[])
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str] = Field(default={})
    name: ClusterName | None = None
    namespace: Named | None = None
    service_account: Named | None = None
    pull_secrets: list[Named] = Field(default=[])
    gpu: Annotated[str, Field(pattern=r"^[a-z0-9.\-]+/[\w.\-]+$")] = "nvidia.com/gpu"
    nodes: dict[str, str] = Field(default={})
    tolerations: list[Annotated[str, Field(pattern=r"^[\w.\-/]+$")]] = Field(default=[])
    command_memory: Amount = "4 GiB"

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if held := [name for name, value in self.environment.items() if looks_secret(name, value)]:
            raise ValueError(
                f"`{held[0]}` in `environment` looks like a secret; put it into a Secret, named in `secrets`"
            )
        if ours := sorted(OPERATORS & set(self.environment)):
            raise ValueError(f"`{ours[0]}` in `environment` is what Dask's operator sets")
        places = [volume.path for volume in self.volumes]
        if twice := sorted({path for path in places if places.count(path) > 1}):
            raise ValueError(f"two `volumes` are at {twice[0]}")
        return self
