"""What lies on disk: source datasets, the cache format, encodings of soft targets, deterministic views.

Both halves stand on this room and meet only here. It knows nothing of Dask, of command lines, or of the other rooms.
`FORMAT.md` beside this file is the contract with every other reader.
"""
