"""What a language model remembers beside its network: the n-grams of train, and its own text."""
