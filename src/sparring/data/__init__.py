"""From SFT rows to token ids: sources -> conversations -> chat -> prepare, as the records of `sparring.data.records`.

sources.py        the sources of rows: row_files.py and tasks.py
conversations.py  a row as turns and a reply, or as a prompt, by the columns that shapes.py knows; equal rows, and which are taken
turns.py          a row's columns by their standard names, a turn and its keys
preferences.py    a row as a labelled pair
chat.py           turns as token ids; rendering.py runs the template with limits, template_check.py checks that it kept the turns
prepare.py        the rows of a run: filtered, split, tokenised; and the fingerprint of everything that they depend on
tables.py         parquet tables of a run

Nothing is imported here, so that the report can read the records without the tokenisation or any reader.
"""
