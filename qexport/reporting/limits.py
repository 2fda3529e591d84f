"""From where on a figure of accuracy says too little, or too little is kept of it, and the rule without a number."""

from __future__ import annotations

MIN_EVALUATION_IMAGES = 50
MIN_INTERVAL_IMAGES = 8
"""Images below which an interval over images is not shown: it reads as certainty."""
MIN_MEANINGFUL_MAP = 0.01
"""FP32's mAP or top-1 below which what is kept of it is chance: of untrained models, or with another model's labels."""
MIN_RETENTION = 0.97
"""Share of FP32's mAP below which nothing is called fit to ship, unless a rule of the gate says what is."""
STRICT = "strict"
"""The rule of the gate that outputs are like FP32's; it has the name of its option."""
