"""One streaming pass over images: the distribution of every value."""
