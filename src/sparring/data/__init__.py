"""From SFT rows to token ids: sources -> chat -> prepare, as the records of `sparring.data.records`.

Nothing is imported here, so that the report can read the records without the tokenisation or any reader.
"""
