"""The float program that every artifact is made from: capture, one normal form, a name for every value.

A new head, a new operation or a new way of writing one goes here.
"""
