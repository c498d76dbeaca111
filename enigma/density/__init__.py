"""A flow as a distribution of `torch.distributions`."""
