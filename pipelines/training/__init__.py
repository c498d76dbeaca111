"""Training: the code that decides the weights of the language model."""
