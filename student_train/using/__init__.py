"""What one does with a settled student.

export.py     its folder in the form of another library, compared with the student before it counts
to_gpt2.py    a `gpt` as transformers' GPT-2
to_peft.py    an adapter alone, on top of its base
beside.py     tokenizer, chat template and generation config, which go with it
card.py       the model card
rows.py       rows to compare on
"""
