"""What decides the weights of the language model."""
