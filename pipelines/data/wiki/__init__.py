"""The markup of Wikipedia, read in linear time: what of it is text, and what is not."""
