"""Observers: each file beside this one holds one way to choose the range of a tensor."""
