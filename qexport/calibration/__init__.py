"""One streaming pass over images: extremes and a histogram of every value.

What is recorded goes here; how ranges are chosen from it goes into `qexport.planning`.
"""
