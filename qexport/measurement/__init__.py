"""What INT8 costs and gains: accuracy, latency, and whether a data set suits a model.

How the figures are shown goes into `qexport.reporting`.
"""
