"""Stores that every later release must be able to read."""
