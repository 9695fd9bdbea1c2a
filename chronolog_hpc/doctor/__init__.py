"""Whether a node can do what this software needs, tried and not guessed.

A check is a function that returns one `Finding`; it knows nothing of the others:

    finding      what a check returns
    job          the MPI library (library), its ranks, srun: once for a job
    node         software and clocks: once for each node, like all below
    directory    what the file system of a directory can do
    storage      the store, and the directories for tails and spools
    limits       of processes
    examination  all of it, over the ranks of a job
"""
