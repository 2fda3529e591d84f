"""A program as an ONNX graph, for the three formats that are made of one."""
