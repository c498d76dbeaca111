"""Evidence recounted from the final shards, the verdict on it, and the pages that show both."""
