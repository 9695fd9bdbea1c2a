"""What a client talks to: one contract, several engines."""
