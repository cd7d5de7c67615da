"""A settled student in a form that others load, compared with the student before it counts.

models.py        the story of safetensors, ONNX and .pt2: any student
written.py       a student as a file of each of these, and how that is run again
quantizing.py    an ONNX file in int8
hub/             a folder of transformers: a language model, one of texts, or one of pictures
card.py          the model card
rows.py          rows to compare on
place.py         where an export lies, and whether it is there already
"""
