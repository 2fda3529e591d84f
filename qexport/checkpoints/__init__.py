"""What comes in: a `.pt` checkpoint or a float ONNX file, read without trusting it."""
