"""What language models bring along, as their folders have it; read by both stages, and none of it is run unasked.

tokenizer.py     a `tokenizer.json`: its fingerprint, its ids, in what two differ
model_folder.py  a folder as `save_pretrained` writes it: config, weights, and what is refused of it
folder_code.py   the folder's own code, where a job trusts it by name
pooling.py       how an embedding is made of hidden states, as the folder or a job says it
preprocessing.py how pictures are normalised, likewise
answering.py     encoders as torch modules with one answer for each text: pooled, or classified
"""
