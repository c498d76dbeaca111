"""Around the language model: its published sizes, and training it over several GPUs."""
