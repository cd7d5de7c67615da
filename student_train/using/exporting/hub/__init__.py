"""A student as a folder of transformers, which its Auto classes load.

transformers.py  the story: written, loaded again, compared
form.py          what is particular to a kind of student
language.py      of a language model, or of an adapter alone
encoders.py      of one that answers texts: the modules of sentence-transformers, its tokenizer
pictures.py      of a classifier of pictures: its image processor
smaller.py       fewer blocks or narrower ones, as a smaller config builds them
to_gpt2.py       a `gpt` as transformers' GPT-2
to_peft.py       an adapter alone, on top of its base
beside.py        tokenizer, chat template and generation config, which go with a language model
"""
