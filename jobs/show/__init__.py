"""What people see: terminal, tables, progress, pictures.

terminal.py         progress, errors, exit codes, signals, JSON: the edge that both programs share
streams.py          stdout and stderr that never fail a job; consoles that no text can steer
pace.py             how fast things are counted, and how long the rest takes
night.py            what a command that nobody watches leaves behind: lines of JSON, figures
figures.py          figures for Prometheus, in a file that is replaced as a whole
tables.py           tables and trees, narrow enough for 80 columns

Of caches:

notice.py           what may be done with one, as its publisher says
serving.py          which losses the targets of a teacher serve
pilot/              what `cache plan` found: tables, a picture, the cost of another size

Of students:

train_progress.py   events of training into counts, notes and details
train_events.py     the same as lines of JSON
evaluation.py       one student on some rows: `student eval`
comparison.py       students side by side: `student compare`
"""
