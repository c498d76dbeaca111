"""The columns of a document: those of `wikimedia/wikipedia` on the Hugging Face Hub."""

import pyarrow as pa

RAW_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "url", "title", "text")])
# Texts hardly repeat: a dictionary and statistics of them cost time and bytes for nothing.
ENCODING = {"use_dictionary": False, "write_statistics": False}
