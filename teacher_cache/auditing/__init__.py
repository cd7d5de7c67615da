"""An audit: teachers are asked again about some rows of a cache, and what they say is compared with what is stored.

audit.py      the story: which teachers, which rows, and which of them are off
choosing.py   which rows: drawn by a seed, and spread
asking.py     one shard's chosen rows, asked twice, in two ways to batch them
comparing.py  how far what is stored is from what a teacher says, in nats
drift.py      which machine made what is off, and which library or driver is another one since

Digests hold what was stored; nothing but an audit sees a teacher that changed and that no build has loaded since.
"""
