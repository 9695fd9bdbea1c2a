"""Tests of `py_chronolog_client.testing`."""
