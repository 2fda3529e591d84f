"""The seam to runtimes, and one folder for each runtime.

What a format is stands in `info`, what a backend has to do in `protocol`, how one is found in `registry`. A new
runtime is a new folder; its rules for integers are a table in `qexport.planning`.
"""
