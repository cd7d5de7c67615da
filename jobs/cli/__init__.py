"""The two programs: each command parses, calls a room, and prints; nothing else does.

cache.py       `cache`, and of its commands `status | info | query | manifest`
caches/        the others: `cache plan | build | recode | verify | gc | compact | copy | publish | diff`
student.py     `student`, and of its commands `train | manifest | compare | report`
students/      the others: `student make | bench | chain | eval | predict | export`
manifest.py    what the two `manifest` share
arguments.py   what both programs share: their arguments, and how they start
"""
