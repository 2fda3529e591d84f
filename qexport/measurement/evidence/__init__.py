"""What stands behind a figure: intervals, confidence shift, gallery, noise of every value, histograms."""
