"""Tables: a row is some numbers and some categories, taken by the names of columns; its answer is a class.

source.py    one `[[dataset]]`: which files, which columns, labels and ids
reading.py   rows out of CSV, TSV and Parquet, a cell as it is written there
learning.py  what the columns are and what is in them, in one pass of bounded memory, once
answers.py   what is written as a class, or as the numbers that are to be told
layout.py    what is promised of columns, and how a row becomes numbers by it and columns again
"""

from storage.datasets.table.layout import Layout
from storage.datasets.table.source import TableSource

__all__ = ["Layout", "TableSource"]
