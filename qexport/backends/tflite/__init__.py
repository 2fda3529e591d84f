"""TFLite/LiteRT."""
