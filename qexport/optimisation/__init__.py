"""Passes over weights between plan and file, each kept only where it makes images better that it did not see."""
