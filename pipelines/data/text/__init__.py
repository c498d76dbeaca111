"""Text as arrays, normalisation, the vocabulary, and the loops that numba compiles."""
