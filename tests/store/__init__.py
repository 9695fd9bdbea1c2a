"""Tests of the on-disk store."""
