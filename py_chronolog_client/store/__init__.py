"""The on-disk log: see docs/format.md for the bytes and tail.py for how an event gets there."""
