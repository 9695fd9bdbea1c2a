"""The buffers of a page are kept for the next one: the kernel need not be asked for them again."""

FAULTS = """
import resource, sys, threading
from chronolog_hpc.services.memory import keep_buffers

SIZE_BYTES, TURNS = 12 * 2**20, 50
if sys.argv[1] == "kept":
    keep_buffers()


def use():
    for _ in range(TURNS):
        pair = bytearray(SIZE_BYTES), bytearray(SIZE_BYTES)
        del pair


before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=use)
thread.start()
thread.join()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / (2 * TURNS * SIZE_BYTES))
"""
"""Prints which share of the memory that a thread used came from the kernel."""
