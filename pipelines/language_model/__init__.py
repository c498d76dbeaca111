"""The published language model: loading, scoring, generating, comparing."""
