"""A float ONNX file as a program: read, refused or brought into one form, described, run."""
