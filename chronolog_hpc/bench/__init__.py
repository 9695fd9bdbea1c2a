"""Benchmarks that run on all ranks, check what they measured, and report it with everything it depends on.

The main job (`job.run`) writes, flushes, replays and verifies. Its parts are modules of their own, so that
other benchmarks can take them:

    spec        what is to be done: one frozen dataclass
    ranks        the ranks of a job, of which there may be one, without MPI
    records     what is logged, made again for the verification
    workspace   where it is logged, and what is removed afterwards
    phases      the write, latency and replay phases
    verify      compares everything that was replayed with everything that was logged
    baseline    log_event and log_events against a plain buffered file
    fields      the one list of result fields that drives text and JSON
    report      text and JSON
"""
