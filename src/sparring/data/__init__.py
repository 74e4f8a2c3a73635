"""From SFT rows to token ids: sources -> conversations -> chat -> prepare, as the records of `sparring.data.records`.

sources.py        the sources of rows: text_files.py, arrow.py and tasks.py with compressed.py, which return the rows of
                  rows.py
conversations.py  a row as turns and a reply, by the shapes of shapes.py
turns.py          a turn of a row and its keys; cells.py: its columns by their standard names
preferences.py    a row as a labelled pair
chat.py           turns as token ids; template_check.py checks that the template kept them, template_kwargs.py gives it variables
prepare.py        the rows of a run: filtered, split, tokenised; fingerprint.py: everything that they depend on
tables.py         parquet tables of a run

Nothing is imported here, so that the report can read the records without the tokenisation or any reader.
"""
