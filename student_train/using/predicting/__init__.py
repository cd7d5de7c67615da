"""A student's answers to samples of one's own, as a stream: memory does not grow with their number.

predict.py   the story: samples ahead on threads, answers, lines in the order of the samples
samples.py   what INPUTS are: a folder, a table, lines of text, arrays
columns.py   numbers out of the columns of a table
ahead.py     work that is done ahead on threads, in order
writing.py   CSV and Parquet, beside their place until they are whole
"""
