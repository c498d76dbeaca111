"""What `clean` does to a document: leftovers, filters, near duplicates."""
