"""What Dask's operator takes, by the schemas that come with it; nothing of it is imported."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from storage.errors import BadRequest

PACKAGE = "dask-kubernetes"
SCHEMA = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds/{kind}.yaml"


def check(kind: str, values: dict[str, Any]) -> str | None:
    """Return by which package's schema an object was checked; None: it was not, for that is not installed.

    Args:
        kind: such as `DaskJob`.
        values: the whole object.

    Raises:
        BadRequest: the operator would not take it, or would leave out a part of it.
    """
    try:
        import jsonschema

        package = distribution(PACKAGE)
    except (ImportError, PackageNotFoundError):
        return None
    schema = _schema(Path(str(package.locate_file(SCHEMA.format(kind=kind.lower())))))
    # what every object has, and no schema of one says
    own = {key: value for key, value in values.items() if key not in ("apiVersion", "kind", "metadata")}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(own))
    if error is not None:
        raise BadRequest(
            f"{PACKAGE} {package.version} has another schema of a {kind} than this manifest",
            found=f"{error.json_path}: {error.message}",
            do=f"another version: pip install '{PACKAGE}>=2026.3'",
        )
    return f"{PACKAGE} {package.version}"


@lru_cache
def _schema(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of half a megabyte
    resource = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 - both are safe ones
    closed: dict[str, Any] = _closed(resource["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    return closed


def _closed(schema: Any) -> Any:
    """Return a schema that takes no other keys than those that it knows; Kubernetes drops them without a word."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    return (
        found if not isinstance(schema.get("properties"), dict) or is_open else found | {"additionalProperties": False}
    )
