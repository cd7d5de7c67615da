"""The second half: many students trained from a cache, with no teacher code and no teacher weights.

report/      one page about a folder of runs
using/       what one does with a settled student: evaluate it on other data, predict, export
running/     the story of a job: its passes, the loop, a run's way to its record
preparing/   everything before the first step: checks, memory, the dry run
stepping/    a student's changing state, and how steps are taken: alone, stacked, recorded, on several processes
comparing/   runs side by side: settings, intervals, what each swept key does
run_files/   what lies in a run's folder, who writes each file and who reads it
losses/      one function a paper; the objective, which is their sum
tasks/       figures on held rows, one file a task
feed/        rows from the cache to a device, the same for all students of a pass
students/    architectures; building one, its files
options/     what a job may say of students

Each imports only what is below it, and all of them `storage`. Nothing here prints: how far all is goes to a callback
(`running/events.py`). Importing this package imports no torch; its modules do.
"""
