"""Log from threads and from a signal handler at 1 kHz while another handler raises out of `log_event`; check every event.

Arguments: directory of the store, events for each thread, words of: threads signals raises.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from types import FrameType

import py_chronolog_client as chronolog
from py_chronolog_client.store import appender

KILLER = "import os, sys, time\nwhile True:\n    time.sleep(1 / 300)\n    os.kill(int(sys.argv[1]), 10)"


class Thrown(Exception):
    """What the handler throws out of `log_event`."""


def inside_log_event(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "log_event" and frame.f_globals is vars(appender):
            return True
        frame = frame.f_back
    return False


def main(directory: str, events: int, kinds: set[str]) -> None:
    conf = chronolog.ClientPortalServiceConf("file", directory, 0, 0)
    client = chronolog.Client(conf, chronolog.ClientQueryServiceConf())
    assert client.Connect() == client.CreateChronicle("c") == 0
    _, handle = client.AcquireStory("c", "s")
    assert handle is not None
    log = handle.log_event
    returned: list[tuple[int, str]] = []  # one append is atomic
    counts = {"handled": 0, "thrown": 0, "lost": 0}

    def attempt(record: str) -> None:
        try:
            time_ns = log(record)
        except Thrown:
            return
        if time_ns:
            returned.append((time_ns, record))
        else:
            counts["lost"] += 1

    def on_alarm(number: int, frame: FrameType | None) -> None:
        counts["handled"] += 1
        attempt(f"h-{counts['handled']}-" + "q" * (counts["handled"] % 300))

    def on_user(number: int, frame: FrameType | None) -> None:
        if inside_log_event(frame):
            counts["thrown"] += 1
            raise Thrown

    def work(number: int) -> None:
        sizes = random.Random(number)
        for i in range(events):
            attempt(f"{number}-{i}-" + "abcdefgh"[number] * sizes.randrange(200))

    threads = [
        threading.Thread(target=work, args=(number,)) for number in range(1, 8 if "threads" in kinds else 1)
    ]
    for thread in threads:
        thread.start()
    killer = None
    if "raises" in kinds:
        signal.signal(signal.SIGUSR1, on_user)
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(os.getpid())])
    if "signals" in kinds:
        signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    work(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if killer is not None:
        killer.kill()
        killer.wait()
    for thread in threads:
        thread.join()

    statistics = handle.statistics()
    assert sum(statistics.lost.values()) == counts["lost"] == 0, (statistics, counts)
    series = chronolog.EventList()
    assert client.ReplayStory("c", "s", 0, 2**64 - 1, series) == 0, client.last_error
    found = {(event.time(), event.log_record()) for event in series}
    assert len(found) == len(series) == len({record for _, record in found}), "an event stands twice"
    assert len(set(returned)) == len(returned)
    missing = set(returned) - found
    assert not missing, f"{len(missing)} returned events are missing, for instance {sorted(missing)[:3]}"
    for _, record in found:
        source, _, padding = record.split("-")
        expected = "q" if source == "h" else "abcdefgh"[int(source)]
        assert set(padding) <= {expected}, f"mixed: {record}"
    assert series.sequences.tolist() == list(range(len(series)))
    assert series.times.tolist() == sorted(series.times.tolist())
    print(len(series), counts, client.Disconnect())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), set(sys.argv[3:]))
