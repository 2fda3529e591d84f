"""TFLite Micro: operators and memory of a microcontroller, and the model as a C++ array. Not a format of its own."""
