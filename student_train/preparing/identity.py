"""What decides all that a run computes, and whether the folder of one holds a record that was made from the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.options import code_fingerprint
from student_train.feed.selection import Selection
from student_train.losses.objective import objective_needs
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.options.training import Figure
from student_train.preparing.beginning import said_of
from student_train.preparing.blueprint import HALF
from student_train.preparing.request import Request
from student_train.run_files.checkpoint import check_checkpoint, check_identity, check_name
from student_train.run_files.records import RunRecord, read_record
from student_train.students import Blueprint
from student_train.students.files import BlueprintFile
from student_train.students.starting.start import start_digests


def identity_of(
    request: Request,
    options: StudentOptions,
    blueprint: Blueprint,
    train: Selection,
    held: Selection,
    began: BlueprintFile | None,
) -> dict[str, Any]:
    """Return all that decides what is computed: a checkpoint or record of anything else is not gone on from.

    Args:
        request: of all students.
        options: of the student.
        blueprint: of it.
        train, held: its rows.
        began: what it starts from as it is; None: it is drawn, or takes weights alone.
    """
    catalogue = train.catalogue
    data, views = request.data, train.views
    taught = objective_needs(options.objective).teachers_of(train.datasets)
    several = len(train.datasets) > 1
    identity: dict[str, Any] = {
        # what was left out, as it is: before a table said it, it was HALF
        "student": options.made_from()
        | {key: list(getattr(options, key) or getattr(blueprint, key) or HALF) for key in ("mean", "std")},
        "architecture_code": code_fingerprint(blueprint.architecture) if ":" in blueprint.architecture else None,
        # of the other options residency changes nothing; rows and views tell of the rest
        "data": data.model_dump(mode="json", include={"train", "validation", "window_shards", "order_seed"})
        | ({} if data.mixture is None else {"mixture": data.mixture}),
        "cache": catalogue.about.id,
        "datasets": {name: catalogue.dataset(name).fingerprint for name in (*train.datasets, *held.datasets)},
        "teachers": {
            f"{dataset}/{name}" if several else name: catalogue.teacher(dataset, name).fingerprint
            for dataset, name in taught
        },
        "train_rows": f"{train.num_rows}, {train.fingerprint}",
        "validation_rows": f"{held.num_rows}, {held.fingerprint}",
    }
    if options.path is not None:
        identity |= blueprint.options  # the config as it was read
    if options.start is not None and options.starts_from is not None:
        identity["start"] = start_digests(options.starts_from)
        identity["layers"] = None if options.start.layers is None else list(options.start.layers)
    if views is not None:
        identity["views"] = {"count": views.count, "fingerprint": views.spec.fingerprint}
    if began is not None:
        identity["began_as"] = said_of(began)
    return identity


def settled_record(folder: Path, identity: dict[str, Any], fleet: FleetOptions, best_by: Figure) -> RunRecord | None:
    """Return the record of a run that needs no more training, after checking that it was made from the same job.

    One that was set aside needs none as long as the same section of the job decides so, by default by `best_by`.
    """
    record = read_record(folder)
    if record is not None:
        check_name(folder, record.student)
    if record is None or record.identity == identity:
        check_checkpoint(folder, identity)
    elif record.status != "failed":  # a failed one may be begun again, by another job
        check_identity(folder, record.identity, identity)
    if record is None or record.status == "failed":
        return None
    section = None if fleet.halving is None else fleet.halving.by(best_by).model_dump(mode="json")
    return record if record.status == "finished" or record.halving == section else None
