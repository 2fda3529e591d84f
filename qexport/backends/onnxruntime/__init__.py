"""ONNX Runtime on the CPU: which nodes it fuses to integer kernels. `qexport.lowering.onnx` makes the graph."""
