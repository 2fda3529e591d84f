"""A plan acted out on the float program: quantise/dequantise pairs and meters."""
