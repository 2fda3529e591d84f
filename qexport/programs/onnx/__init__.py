"""An ONNX file as a program."""
