"""Passes over weights between plan and file, each kept only where the error falls on images that it did not see."""
