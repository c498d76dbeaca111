"""The Chinese data path: from files of text to shuffled token shards."""
