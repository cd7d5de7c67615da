"""Commands of `cache` that have much to say, and what they share.

planning.py    `cache plan`
building.py    `cache build`
dry_run.py     `cache build --dry-run`
recoding.py    `cache recode`
choosing.py    which cluster these two and `student chain` have
reports.py     what they tell at their ends
verifying.py   `cache verify`
auditing.py    `cache verify --teacher`
copying.py     `cache copy | publish | diff`
keeping.py     `cache gc | compact`
"""
