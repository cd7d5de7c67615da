"""Text as it lies in files: opened, cut, and read as a stream of rows, so that no file is ever held whole.

opening.py   files as bytes, compressed ones too
cutting.py   where a file may be cut, and text between two cuts
where.py     which rows are a dataset's own
rows.py      rows out of columns and JSON, as a stream
tables.py    files of rows, of every kind
ranges.py    what lies in a range of a file, whatever its kind
windows.py   rows of a file that can only be read from its beginning

Chats are read by it too.
"""
