"""Settings that were measured on the same rows, as JSON: what `student compare --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from student_train.comparing.compared import Compared
from student_train.comparing.settings import Setting
from student_train.run_files.records import beside

MEANS = (
    "accuracy",
    "macro_f1",
    "agreement",
    "cross_entropy",
    "perplexity",
    "kl",
    "spearman",
    "cosine",
    "retrieval",
    "rmse",
    "r2",
    "teacher_rmse",
    "calibration_error",
)
ON_DATASET = {
    "accuracy",
    "agreement",
    "cross_entropy",
    "perplexity",
    "kl",
    "cosine",
    "rmse",
    "r2",
}  # what is known of each dataset
BESIDE = ("kl", "agreement")  # what is known beside each of several teachers
BESIDE_VECTORS = ("spearman", "cosine", "retrieval", "teacher_rmse")  # likewise, of those that answer with vectors


def as_values(found: Compared) -> dict[str, Any]:
    """Return settings that were measured on the same rows, as JSON."""
    gain = found.gain.column
    return {
        "rows": found.rows,
        "held_rows": found.num_rows,
        "task": found.task,
        "compared_by": gain,
        "chance": found.chance,
        "kl_over": found.kl_over,
        "alone_of_several": [{"teachers": names, "compared_with": one} for names, one in found.alone.items()],
        "held_rows_by_dataset": found.datasets,
        "beside_teachers": [{"teacher": name, "kl_over": over} for name, over in found.beside.items()],
        "best": None if found.best is None else found.best.name,
        "labels_alone": None if found.labels_alone is None else found.labels_alone.name,
        "settings": [_setting_values(setting, found) for setting in found.settings],
        "teachers": [
            {
                "teacher": t.name,
                **t.figures,
                "behind": None if t.behind is None else t.behind._asdict(),
                "by_dataset": t.by_dataset,
            }
            for t in found.teachers
        ],
        "effects": [
            {"keys": list(e.varied.keys), "values": list(e.values), "means": list(e.means), "lines": list(e.lines)}
            for e in found.effects
        ],
    }


def _setting_values(setting: Setting, found: Compared) -> dict[str, Any]:
    """Return a setting's figures over its seeds, and how far it is behind the best, as JSON."""
    gain, less = found.gain.column, found.behind.get(setting.name)
    values = setting.values(gain)
    columns = dict.fromkeys((gain, *MEANS))
    known = [column for column in columns if column in ON_DATASET]
    taught = [teacher for teacher in found.beside if teacher in setting.first.by_teacher]
    return {
        "setting": setting.name,
        "students": [run.name for run in setting.runs],
        "seeds": len({run.chance for run in setting.counted}),
        "counted": len(values),
        "not_finished": setting.statuses,
        "labels_alone": setting.labels_alone,
        "near_chance": setting.name in found.near_chance,
        "varied": {key: setting.keys.get(key) for varied in found.varied for key in varied.keys},
        "means": {column: setting.mean(column) for column in columns},
        "deviations": {column: setting.deviation(column) for column in columns},
        "by_dataset": {
            dataset: {
                "means": {column: setting.mean(column, dataset) for column in known},
                "deviations": {column: setting.deviation(column, dataset) for column in known},
            }
            | ({"by_teacher": _beside_values(setting, taught, dataset)} if taught else {})
            for dataset in found.datasets
        },
        "by_teacher": _beside_values(setting, taught, None),
        "best": None if not values else max(values) if found.gain.sign > 0 else min(values),
        "behind": None if less is None else less._asdict(),
        "parameters": setting.first.figures["parameters"],
        "pass_seconds": setting.mean("seconds"),
    }


def _beside_values(setting: Setting, teachers: Sequence[str], dataset: str | None) -> dict[str, Any]:
    """Return figures beside each of several teachers, on all held rows or on those of one dataset, as JSON."""
    known = [
        figure
        for figure in BESIDE_VECTORS
        if any(setting.mean(beside(figure, teacher), dataset) is not None for teacher in teachers)
    ] or BESIDE
    return {
        teacher: {
            "means": {figure: setting.mean(beside(figure, teacher), dataset) for figure in known},
            "deviations": {figure: setting.deviation(beside(figure, teacher), dataset) for figure in known},
        }
        for teacher in teachers
    }
