"""Quantisation-aware training: what is learned, how, and the files that keep it."""
