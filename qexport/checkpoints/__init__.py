"""`.pt` files, read without trusting them: bytes, pickle as data, proof, rebuilt layers.

Which layers are allowed, older formats, and what a file is that is no checkpoint. Float ONNX files are read in
`qexport.programs.onnx`.
"""
