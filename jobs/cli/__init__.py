"""The two programs: each command parses, calls a room, and prints; nothing else does.

cache.py          `cache build | status | info | query`
cache_audit.py    `cache verify`
cache_copy.py     `cache copy | publish | diff`
cache_keeping.py  `cache gc | compact`
cache_plan.py     `cache plan`
cache_recode.py   `cache recode`
building.py       what `cache build` and `cache recode` share: a cluster, and the report at the end
cache_manifest.py  `cache manifest`
manifest.py       what that and `student manifest` share
student.py        `student train | compare | report`
students/         `student make | eval | predict | export | bench | chain`
arguments.py      what both programs share: their arguments, and how they start
"""
