"""What a document is: the columns of a Wikipedia dump on the Hugging Face Hub."""

import pyarrow as pa

RAW_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "url", "title", "text")])
