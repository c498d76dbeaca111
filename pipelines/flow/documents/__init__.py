"""Documents: their mean states, a flow over these, and what is typical of them."""
