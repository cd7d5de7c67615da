"""What lies on disk: source datasets, the cache format, encodings of soft targets, deterministic views.

cache/      a whole cache: what it holds, its samples, SQL over them, verification
datasets/   sources of samples, one file a kind
inputs/     what a row is made of, one file each: pixels, tokens, texts, values
tasks/      what is asked of a row, one file each: its labels, its sites, the columns of its commit
views/      augmentations: the very tensor that teacher and student both see
encodings/  soft targets and features as bytes
targets/    soft targets as they are decoded, for losses and measures
format/     objects, arrays, shards and their commits, rows, the ledger, promises
language/   what language models bring along: a tokenizer, a folder as transformers saves it

and what all of these use: digests.py, errors.py (with every exit code), options.py.

Both halves stand on this room and meet only here. It knows nothing of Dask, of command lines, or of the other rooms.
`FORMAT.md` beside this file is the contract with every other reader.
"""
