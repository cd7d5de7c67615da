"""Changed files for every reader: what comes out is what was there, or an error of ours.

changes.py    how a file is changed: bits and bytes; JSON and tables, sealed again with digests that are right
watch.py      what no reader may do meanwhile: run code, leave its folder, use the network, hang, take memory
reader.py     one of them: a whole file, how it is changed and read, and what may come of it
readers.py    all of them, each with a file of its own
models.py     those of models that others made
__main__.py   `python -m tests.fuzz --cases N`; the tests take a few hundred of the same
guided.py     the same readers by atheris, which chooses cases by the lines that they reach
"""
