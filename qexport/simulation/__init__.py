"""A plan acted out on the float program: quantise/dequantise pairs, fake quantisation and meters in one graph."""
