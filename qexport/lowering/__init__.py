"""From program and plan to files, whatever the runtime: metadata, ONNX graphs, what is read back."""
