"""What a run's folder holds: folder.py writes all of it, in its order; each kind of file has a module.

<runs>/<student>/            its module                  written by               read by
  run.json                   records.py                  running/run.py, last     preparing, report, comparison.py
                                                       (one_pass.py: could not begin)
  metrics.parquet            history.py                  running/run.py           report
  steps/00001.parquet        history.py                  running/run.py           running/tracking/
  predictions.parquet        predictions.py, predictions_file.py
                                                         running/measuring/predictions.py   report, comparing
  checkpoint.json, .safetensors
                             position.py, checkpoint.py  running/run.py           running/run.py, preparing,
                                                                                  comparison.py, report
  job.toml                   (options/job_text.py)       running/run.py           whoever repeats the run
  student.json, .safetensors, tokenizer.json, adapter.safetensors
                             (students/files.py)         running/run.py           teacher_cache, its users
  .lock                      locks.py                    folder.py                whoever else would train it

Beside the folders `.lock-<digest>` is that of a whole job (locks.py).

Each carries a digest of itself, or another file has it; it is checked on every read. Format 1 had none, and is still
read.

A folder with a `run.json` is of a settled run: finished, stopped or failed. One with a checkpoint alone is of a run
that goes on. comparison.py has many runs side by side.
"""
