"""TensorRT: rules of a strongly typed graph, and the script that builds an engine of it."""
