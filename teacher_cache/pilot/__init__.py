"""`cache plan`: a few hundred rows, every encoding the job could use, and what the big run would cost.

pilot.py      the story
rows.py       which rows, read straight from the source
foretell.py   how long all of it will take, told before it is done
answers.py    what the teacher says of them, and how fast
ladder.py     which encodings are tried
cost.py       what one takes of a row: bytes, and seconds to make and to read
fidelity.py   how near each comes to the dense targets
ingested.py   what a row takes before a teacher is asked about it
scale.py      what a job of another size would cost, and the first limit that it would meet
worth.py      from how many students on a cache pays
"""
