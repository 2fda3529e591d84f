"""ExecuTorch as a format of qexport: `.pte` programs whose arithmetic XNNPACK does."""
