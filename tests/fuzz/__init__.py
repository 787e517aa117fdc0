"""Hostile input: only documented errors come out."""
