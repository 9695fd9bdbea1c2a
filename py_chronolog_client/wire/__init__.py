"""The network protocol without I/O: bytes in, messages out, and back (docs/protocol.md).

`frames` cuts a stream of bytes into frames, `messages` gives them a meaning, `handshake` decides who may speak,
`pages` carries events. Nothing here opens a socket or knows the time, so all of it is tested byte by byte.
"""
