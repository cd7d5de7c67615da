"""A settled student in a form that others load, compared with the student before it counts.

models.py        the story of safetensors, ONNX and .pt2: any student
written.py       a student as a file of each of these, and how that is run again
quantizing.py    an ONNX file in int8
transformers.py  a language model, or one of texts, as a folder of transformers
encoders.py      what of it is of one that answers texts: the modules of sentence-transformers, its tokenizer
to_gpt2.py       a `gpt` as transformers' GPT-2
to_peft.py       an adapter alone, on top of its base
beside.py        tokenizer, chat template and generation config, which go with a language model
card.py          the model card
rows.py          rows to compare on
place.py         where an export lies, and whether it is there already
"""
