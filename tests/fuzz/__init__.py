"""Changed files for every reader: what comes out is what was there, or an error of ours.

changes.py    how a file is changed: bits and bytes; JSON and tables, sealed again with digests that are right
watch.py      what no reader may do meanwhile: run code, leave its folder, use the network, hang, take memory
readers.py    the readers, each with a whole file of its own
__main__.py   `python -m tests.fuzz --cases N`; the tests take a few hundred of the same
"""
