"""What one does with a settled student.

settled.py     its record, and whether its code may run
answering.py   who answers: a run, an exported folder, an ONNX file, all behind one door
portable.py    all that must go along with a model's weights, as text: blueprint, preprocessing, tokenizer
evaluating/    its figures on data that it never saw
predicting/    its answers, as a stream
exporting/     its folder in a form that others load
"""
