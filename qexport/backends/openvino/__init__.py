"""OpenVINO on the CPU: writing the IR, reading it back, and what the CPU plugin compiles of it."""
