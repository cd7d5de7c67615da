"""Run the benchmarks: `python -m tests.benchmarks [NAME …]`; prints ratio, spread and what is to be reached."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from tests.benchmarks import (
    encoded,
    encoding,
    feed,
    fleet,
    fleet_memory,
    growth,
    hf_step,
    ingest,
    kd_step,
    labelled,
    language_teacher,
    live_language,
    live_teacher,
    many_objects,
    memory,
    micro_batch,
    minilm,
    nights,
    onnx_teacher,
    predict,
    rebuild,
    residency,
    scale,
    shards,
    status,
    store,
    student_bench,
    student_step,
    teacher_stage,
    teacher_stage_gpu,
    ten_gb,
    views,
)
from tests.benchmarks.pairs import Figure

BENCHMARKS = {
    "teacher-stage": teacher_stage.measure,
    "onnx-teacher": onnx_teacher.measure,
    "teacher-stage-gpu": teacher_stage_gpu.measure,
    "teacher-stage-profile": teacher_stage_gpu.profile,
    "student-step": student_step.measure,
    "ingest": ingest.measure,
    "rebuild": rebuild.measure,
    "shards": shards.measure,
    "status": status.measure,
    "growth": growth.measure,
    "many-objects": many_objects.measure,
    "text-10gb": ten_gb.measure_text,
    "chats-10gb": ten_gb.measure_chats,
    "scale-build": scale.measure_sleeping,
    "scale-tasks": scale.measure_sleeping_tasks,
    "scale-empty": scale.measure_empty,
    "nights": nights.measure,
    "memory": memory.measure,
    "encoding": encoding.measure,
    "encoded": encoded.measure,
    "views": views.measure,
    "kd-step": kd_step.measure,
    "micro-batch": micro_batch.measure,
    "micro-batch-gpu": micro_batch.measure_gpu,
    "language-teacher": language_teacher.measure,
    "language-teacher-gpu": language_teacher.measure_gpu,
    "hf-step": hf_step.measure,
    "hf-step-gpu": hf_step.measure_gpu,
    "labelled": labelled.measure,
    "minilm": minilm.measure,
    "residency": residency.measure,
    "resident-gpu": residency.measure_gpu,
    "fleet-memory": fleet_memory.measure,
    "predict": predict.measure,
    "live-teacher": live_teacher.measure,
    "live-language": live_language.measure,
    "live-language-gpu": live_language.measure_gpu,
    "fleet": fleet.measure,
    "fleet-gpu": fleet.measure_gpu,
    "student-bench": student_bench.measure,
    "feed": feed.measure,
    "store": store.measure,
}


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(names) - BENCHMARKS.keys():
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    print(Figure.HEADER, flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for figure in BENCHMARKS[name](Path(folder)):
                print(figure, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
