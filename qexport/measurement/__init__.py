"""What INT8 costs and gains: accuracy with intervals, latency, signal to noise, and the evidence for each."""
