"""Where named byte strings lie; `storage.format.objects` opens one by its address.

base.py    what every store gives
local.py   a folder
remote.py  a prefix of an object store
asking.py  ask one until it answers
refusals.py  what it says when it refuses, in words, and what to do
web.py     a published cache on a web server, read-only
index.py   what lies there, for nothing can be listed
mirror.py  the files of a source, copied to this machine; `fetched` is the door
kept.py    another store, whose shards are kept on a disk of this machine once they were read
"""
