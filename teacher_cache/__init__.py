"""The first half: run teachers over datasets once, and commit what they said.

pilot/     `cache plan`: what each encoding costs and keeps, on a few hundred rows
building/  the story of a build: what is missing, in which stages, and the loop over their shards
auditing/  `cache verify --teacher`: asked again about some rows, do teachers say what is stored
making/    `student make`: a student made from a teacher: copied, pruned, factorised, quantised
recoding/  the same for `cache recode`: a smaller cache from a richer one, without the teacher
work/      one shard on one worker, from start to end: ingest it, ask about it, recode it
teachers/  kinds of teachers, one file each: what identifies one, how it is loaded

A student's training imports none of it.
"""
