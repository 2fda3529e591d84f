"""A program as an ONNX graph, for the three formats made of one: export, Q/DQ pairs, FP16, reading back."""
