"""The pipeline: one module a stage, files in, files out."""
