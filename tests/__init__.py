"""Tests of both packages; the folders below mirror theirs, and what tests share is in tests.support."""
