"""The cache on disk, as FORMAT.md has it: whole objects, sealed files, and commits that make shards visible.

objects.py   named byte strings, written whole, in a folder or an object store: opened by their address
stores/      what each kind of store does
filesystems.py  what a disk may lack, and what is done then; regular files alone are read
sealed.py    files that carry a digest of all their own bytes, Parquet and JSON
specs.py     promises: cache.json, dataset.json, teacher.json, views.json
rows.py      the frozen plan: which sample is which row, and where shards end
arrays.py    the arrays of a shard as bytes, and back
shards.py    shards and their commits
stages.py    which datasets, teachers and stages there are, from listings
committing.py  a shard: its arrays first, its commit last, so that a kill leaves nothing visible; read as that says
zips.py      one object for a whole Zarr group
promised.py  the one check of a shard: its commit, its arrays and their values against what is promised of them
belonging.py whether a shard is of this cache and its promises
ledger/      all commits at a glance
"""
