"""Many runs side by side: what `student compare` prints, and the report begins with.

    runs.py       what lies in a folder of runs
    answers.py    a student's predictions, as far as they are compared
    settings.py   students that differ in their seed alone, and in what settings differ
    noise.py      how far a difference of two settings can be believed
    figures.py    by which figure they are compared, and how it is written
    headline.py   what a sweep has shown, in a few sentences
    compared.py   settings that were measured on the same rows, beside the teacher and chance
    effects.py    what each swept key does
    values.py     all of it, as JSON

Whatever is damaged is told, and never the end of the rest. Nothing here prints.
"""
