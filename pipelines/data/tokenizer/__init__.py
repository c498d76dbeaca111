"""Text to WordPiece ids, and ids to sequences of one length."""
