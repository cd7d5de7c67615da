"""Job files, clusters, the two programs: the only room that knows both halves.

cli/         the two programs: each command parses, calls a room, prints
chain/       `student chain`: students that teach the next ones
cluster/     Dask: which workers there are, what they are sent, what becomes of it
files/       job files: strict TOML in, one checked job out
kubernetes/  a job as YAML for Dask's operator
show/        what people see: terminal, tables, progress, pictures

Beside these lie jobs to run, `*.toml`, and schedule/, which starts them at night. Both programs begin in
`stillroom_start.py`, outside of the rooms.
"""
