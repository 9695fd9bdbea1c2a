"""The tests of the store notice defects: each of these small ones must turn a named test red.

The named test is green without the defect wherever it stands itself. More of the kind: what the contract suite
notices is in tests/testing, what the model of power cuts and the real ones notice in tests/store/test_powerloss.py.
"""

from __future__ import annotations

import gc
import inspect
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from py_chronolog_client.store import (
    acquisition,
    apart,
    archive,
    blocks,
    chunk,
    chunkformat,
    chunking,
    clientlog,
    comeback,
    compaction,
    deflate,
    files,
    growth,
    merge,
    owner,
    rights,
    segment,
    storylog,
    stretch,
    tail,
    tailcopy,
)
from py_chronolog_client.store.appender import Appender
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.format import BlockHeader
from py_chronolog_client.store.journal import Journal
from py_chronolog_client.store.losses import Losses
from py_chronolog_client.store.pen import Pen
from py_chronolog_client.testing.contract import Probe
from tests.engine import test_embedded
from tests.store import (
    test_archive,
    test_catalog,
    test_chunk,
    test_chunking,
    test_compaction,
    test_corruption,
    test_dropped,
    test_fork,
    test_growth,
    test_interruption,
    test_owner,
    test_powerloss,
    test_root,
)
from tests.store.editing import edited
from tests.store.holding import open_catalog
from tests.store.opcodes import at
from tests.store.test_interruption import Subject, engine
from tests.store.writing import connect, small

__all__ = ["engine", "small"]

Check = Callable[[pytest.FixtureRequest], object]


def a_test(test: Callable[..., object], **arguments: Any) -> Check:
    """A test function, with some arguments; fixtures of its own module are made for it."""

    def check(request: pytest.FixtureRequest) -> None:
        path = request.getfixturevalue("tmp_path")
        for name in inspect.signature(test).parameters.keys() - arguments.keys():
            maker = MAKERS.get((test.__module__, name))
            arguments[name] = maker(path) if maker else request.getfixturevalue(name)
        test(**arguments)

    return check


def contract(name: str, **arguments: Any) -> Check:
    """A sentence of the contract, kept by the embedded engine."""

    def check(request: pytest.FixtureRequest) -> None:
        suite = test_embedded.TestEmbedded()
        suite.directory = request.getfixturevalue("tmp_path")
        probe = Probe(suite.make_engine(), suite.page_events)
        try:
            getattr(suite, name)(probe, **arguments)
        finally:
            probe.close()

    return check


def whole(operation: str) -> Check:
    return a_test(test_interruption.test_what_is_there_at_every_bytecode_is_whole, operation=operation)


def interrupted(operation: str, action: str) -> Check:
    """An operation that is interrupted by an action, as in test_interruption.py, from its end on, where the commit is."""

    def check(request: pytest.FixtureRequest) -> None:
        engine = request.getfixturevalue("engine")
        for number in range(test_interruption.bytecodes(engine, operation), 0, -4):
            test_interruption.run_interrupted(Subject(engine), operation, action, at(number))

    return check


def bits(block: int, offset: int) -> Check:
    """Any bit of one byte of a block."""

    def check(request: pytest.FixtureRequest) -> None:
        first = 8 * (test_corruption.BOUNDS[block][0] + offset)
        request.getfixturevalue("monkeypatch").setattr(
            test_corruption, "sample", lambda count, reduced: range(first, first + 8)
        )
        a_test(test_corruption.test_any_bit_of_a_segment)(request)

    return check


class Defect(NamedTuple):
    """An edit of a function, and a test that must notice it."""

    name: str
    function: Any
    old: str
    new: str
    noticed_by: Check


WRITING = [
    Defect(
        "the commit comes before the payload",
        tail.appends,
        "room[start:end] = record\ntimes[slot] = time_ns = tick() + offset_ns\nends[slot] = end",
        "times[slot] = time_ns = tick() + offset_ns\nends[slot] = end\nroom[start:end] = record",
        whole("append"),
    ),
    Defect(
        "the commit comes before the time",
        tail.appends,
        "times[slot] = time_ns = tick() + offset_ns\nends[slot] = end",
        "ends[slot] = end\ntimes[slot] = time_ns = tick() + offset_ns",
        whole("append"),
    ),
    Defect(
        "the first event of a batch is committed first",
        Journal.put,
        "epoch.ends[slot + 1 : slot + count] = ends[2:]\nepoch.ends[slot] = ends[1]",
        "epoch.ends[slot] = ends[1]\nepoch.ends[slot + 1 : slot + count] = ends[2:]",
        a_test(test_interruption.test_a_batch_is_seen_whole_or_not_at_all),
    ),
    Defect(
        "the tail is recycled before its block is written",
        Journal.roll,
        "with self.pen() as pen:",
        "with self.pen() as pen:\n    epoch.ends[0] = 0",
        whole("append that rolls"),
    ),
    Defect(
        "a recycled tail keeps its old ends",
        tail.Tail.recycle,
        "self.clear(epoch, 0)",
        "pass",
        whole("append that rolls"),
    ),
    Defect(
        "a recycled tail keeps its base",
        tail.Tail.recycle,
        "epoch.words[_BASE_WORD] = base",
        "pass",
        whole("append that rolls"),
    ),
    Defect(
        "an interrupted batch is left in the tail",
        Journal.settle,
        "self.tail.clear(epoch, slot)",
        "pass",
        interrupted("batch", "raises"),
    ),
    Defect(
        "a block that was written before an interruption is written again",
        Journal.settle,
        "if self.tail.base(epoch) + slot <= stored:",
        "if False:",
        interrupted("append that rolls", "logs"),
    ),
    Defect(
        "a new pen believes what the old one has noted",
        Pen.look,
        "while header := complete_block(segment.descriptor, offset, client_id):",
        "while header := None:",
        interrupted("big record", "logs"),
    ),
    Defect(
        "a new right does not revoke the others",
        rights.supplant,
        "other.revoke()\nbreak",
        "break",
        interrupted("append that rolls", "logs"),
    ),
    Defect(
        "what a handler throws is taken for the store's own",
        rights.is_own,
        "return raiser.startswith(_PACKAGE)",
        "return True",
        interrupted("append", "raises ValueError"),
    ),
    Defect(
        "refused events are not counted",
        Losses.add,
        "self._added.append((reason, count))",
        "pass",
        contract("test_events_for_a_closed_writer_are_refused_and_counted"),
    ),
    Defect(
        "times go back with another clock",
        Journal._use_reading,
        "self._given, self.reading = reading, reading.not_before(self.now())",
        "self._given = self.reading = reading",
        contract("test_times_never_decrease_under_another_clock"),
    ),
    Defect(
        "closing leaves the tail",
        Appender._say_goodbye,
        """own.write_goodbye(reason, self._losses.by_reason(), durable=self._options.durability == "node")
        own.tail.remove()""",
        'own.write_goodbye(reason, self._losses.by_reason(), durable=self._options.durability == "node")',
        interrupted("close", "looks"),
    ),
    Defect(
        "closing does not flush",
        Appender._say_goodbye,
        "self._flush(own, claim)",
        "pass",
        interrupted("close", "logs"),
    ),
    Defect(
        "a failed sync is believed when it is asked for again",
        segment.Segment.sync,
        "self._failed = True",
        "pass",
        a_test(test_interruption.test_a_failed_sync_that_is_interrupted_is_still_final, action="flushes"),
    ),
]
"""What a writer may get wrong, alone or interrupted."""

CHILDREN = [
    Defect(
        "a child keeps its parent's rights",
        Journal.let_go,
        "right.revoke()",
        "pass",
        a_test(test_fork.test_a_child_of_a_child, silent=False),
    ),
    Defect(
        "a child takes over its parent's losses",
        Appender.after_fork_in_child,
        "self._losses = Losses()",
        "pass",
        a_test(test_fork.test_a_child_counts_its_own_losses),
    ),
    Defect(
        "a child has its parent's id",
        Appender._make_journal,
        "client_id, first = new_client_id(), 0",
        "first = 0",
        a_test(test_fork.test_a_child_of_a_child, silent=False),
    ),
    Defect(
        "a child does not say who its parent is",
        Appender._make_journal,
        'description = {**description, "parent_client_id": parent_client_id}',
        "pass",
        a_test(test_fork.test_a_child_of_a_child, silent=False),
    ),
    Defect(
        "an opening can be interrupted",
        apart.apart,
        "_thread.start_new_thread(run, ())",
        "run()",
        a_test(test_fork.test_the_first_event_of_a_child_interrupted_at_every_bytecode, action="forks"),
    ),
    Defect(
        "a dropped writer is not closed",
        Appender.__del__,
        'self.close("dropped")',
        "pass",
        a_test(test_dropped.test_what_was_dropped_is_kept_and_released_and_said),
    ),
    Defect(
        "a child closes what its parent has open",
        Appender.__del__,
        "if own is None or self._released or own.pid != os.getpid():",
        "if own is None or self._released:",
        a_test(test_dropped.test_what_a_child_drops_stays_its_parents),
    ),
    Defect(
        "an acquisition survives its owner",
        owner._process_lives,
        'if status.state in "ZX" and status.threads <= 1:',
        "if False:",
        a_test(test_owner.test_a_killed_process_is_dead_also_as_a_zombie),
    ),
    Defect(
        "a recycled pid keeps the dead alive",
        owner._process_lives,
        "if start_ticks and status.start_ticks != start_ticks:",
        "if False:",
        a_test(test_owner.test_a_number_that_somebody_else_has_got_is_dead),
    ),
    Defect(
        "a killed client keeps its story",
        owner.is_alive,
        "if lives is not None:\n    return lives",
        "pass",
        a_test(test_catalog.test_the_story_of_a_killed_client_can_be_destroyed),
    ),
]
"""Forks, garbage and deaths."""

READING = [
    Defect(
        "records are not checked",
        stretch.BlockStretch.check,
        "if not self._checked:",
        "if False:",
        bits(1, 128 + 48),
    ),
    Defect(
        "columns are not checked",
        stretch.BlockStretch.times,
        "if crc32(columns) != header.columns_crc:",
        "if False:",
        bits(1, 128 + 8),
    ),
    Defect(
        "headers are not checked",
        BlockHeader.unpack.__func__,  # type: ignore[attr-defined]
        "if crc != crc32(data[12:HEADER_BYTES]):",
        "if False:",
        bits(1, 88),
    ),
    Defect(
        "a block that is not complete is believed",
        blocks.complete_block,
        "if checksum(descriptor, header.payload_bytes, columns_at + header.columns_bytes) != header.payload_crc:",
        "if False:",
        bits(0, 140),
    ),
    Defect(
        "the search for the next block does not look at the grid",
        blocks.find_header,
        "if (at + place) % ALIGNMENT == 0:",
        "if True:",
        a_test(test_corruption.test_garbage_that_moves_the_blocks_off_their_grid_costs_them, place=2),
    ),
    Defect(
        "a gap is not reported",
        clientlog.ClientLog._note_gap,
        "report.missing += found - expected",
        "pass",
        a_test(test_corruption.test_a_block_that_is_gone_is_a_gap, missing=2),
    ),
    Defect(
        "ties are ordered by chance",
        merge._pages,
        'order = np.lexsort((sequences, client_ids, keys)) if has_chunks else np.argsort(keys, kind="stable")',
        'order = np.argsort(keys[::-1], kind="stable")[::1]',
        contract("test_order_is_time_client_sequence"),
    ),
    Defect(
        "the end of a range is left out",
        merge.ClientItem._wanted,
        'stop = min(int(np.searchsorted(keys, np.uint64(end_ns), "right")), self._marks[1] - first_sequence)',
        "stop = min(int(np.searchsorted(keys, np.uint64(end_ns))), self._marks[1] - first_sequence)",
        contract("test_a_range_includes_both_ends"),
    ),
    Defect(
        "the tail of another boot is believed",
        tailcopy._header,
        "return header, header.boot_id == owner.boot_id() and inode in (0, status.st_ino % 2**64)",
        "return header, True",
        a_test(test_powerloss.test_a_tail_of_another_boot_is_counted_and_left_out),
    ),
    Defect(
        "the tail of another client is believed",
        tailcopy._header,
        "if header.client_id != client_id:",
        "if False:",
        a_test(test_corruption.test_the_tail_of_another_client),
    ),
]
"""What a reader may get wrong."""

NAMES = [
    Defect(
        "a file is renamed over another",
        files.appear,
        "os.link(making, path, follow_symlinks=False)",
        "os.rename(making, path)",
        a_test(test_root.test_only_the_first_publication_counts),
    ),
    Defect(
        "a creator that comes second believes that it was first",
        Catalog._create,
        "return False\nraise",
        "return True\nraise",
        contract("test_of_several_creators_exactly_one_succeeds"),
    ),
    Defect(
        "a destroyer does not look for holders",
        Catalog._move_away,
        "if holders:",
        "if False:",
        contract("test_an_acquired_story_is_not_destroyed"),
    ),
    Defect(
        "a client does not look for destroyers",
        acquisition.confirm,
        "await_destroyers((story_directory.parent.parent, story_directory), patience_s)",
        "pass",
        a_test(
            test_catalog.test_one_party_may_come_in_anywhere_on_the_way_of_another,
            first="destroy_story",
            second="acquire",
        ),
    ),
    Defect(
        "a client does not look whether its files are where they were",
        acquisition.confirm,
        "if not is_made or client_id not in clients(story_directory):",
        "if False:",
        a_test(test_catalog.test_an_acquisition_needs_both_files_where_the_path_leads),
    ),
    Defect(
        "a destroyer does not touch its claim before it renames",
        Catalog._move_away,
        "os.utime(relative_claim, dir_fd=parent)\nos.rename("
        "directory.name, files.unique_name(), src_dir_fd=parent, dst_dir_fd=trash)",
        "os.rename(directory.name, files.unique_name(), src_dir_fd=parent, dst_dir_fd=trash)",
        a_test(test_catalog.test_a_destroyer_whose_claim_was_taken_stops),
    ),
]
"""Names that appear, are acquired, and go."""


MERGING = [
    Defect(
        "two chunks double an event",
        archive.Archive._by_client,
        "first = max(held.first_sequence, expected)",
        "first = held.first_sequence",
        a_test(test_archive.test_of_several_the_first_has_an_event),
    ),
    Defect(
        "a chunk and a block double an event",
        clientlog.ClientLog._beside_chunks,
        "start = span.end_sequence",
        "pass",
        a_test(test_archive.test_a_chunk_and_blocks_may_share_some_events),
    ),
    Defect(
        "segments for which a chunk stands are looked at",
        clientlog.ClientLog.refresh,
        "numbers = [number for number in numbers if number >= self._first_number]",
        "self._first_number = 0",
        a_test(test_archive.test_a_segment_for_which_a_chunk_stands_is_not_looked_at),
    ),
    Defect(
        "a reader does not look at the chunks again",
        storylog.StoryLog.refresh,
        "if self._chunk_names() != self._archive.names:\nself._begin_again()\nelif is_whole:\nbreak",
        "break",
        a_test(
            test_compaction.test_segments_that_go_at_any_moment_of_a_reader, moment="listed", comes_back=False
        ),
    ),
    Defect(
        "a reader opens only the segments that were listed",
        clientlog.ClientLog._open_files,
        "stop = max(numbers, default=-1) + 1",
        "stop = max(numbers, default=-1) + 1\nif self._next_number >= stop:\n    return True",
        a_test(test_compaction.test_a_client_that_comes_back_between_the_listing_and_its_tail, merged=True),
    ),
    Defect(
        "a chunk is merged as if its events were one client's",
        merge._pages,
        'order = np.lexsort((sequences, client_ids, keys)) if has_chunks else np.argsort(keys, kind="stable")',
        'order = np.argsort(keys, kind="stable")',
        a_test(test_chunk.test_chunks_and_segments_are_merged),
    ),
    Defect(
        "the marks of clients in a chunk do not count",
        merge.Selection.of_clients,
        "if self._is_whole:",
        "if True:",
        a_test(test_compaction.test_ranges_marks_and_clients),
    ),
    Defect(
        "the name of a segment is used again",
        comeback.last_departure,
        "merged = _merged(directory, client_id)",
        "merged = _merged(directory, client_id)\nif merged:\n    merged = merged._replace(next_number=0)",
        a_test(test_compaction.test_a_client_comes_back_and_is_merged_again),
    ),
    Defect(
        "a client that comes back goes on in a segment that is closed",
        comeback.open_segment,
        "departure = last_departure(directory, client_id)",
        "return Segment(root, path, first_block, returning=first_sequence > 0)",
        a_test(test_compaction.test_a_client_that_comes_back_before_it_is_merged_makes_its_next_segment),
    ),
    Defect(
        "a client that has come back is merged",
        compaction._final_clients,
        "if numbers[-1] < _merged(held) or client_id in tails:",
        "if numbers[-1] < _merged(held):",
        a_test(test_archive.test_a_client_with_a_tail_is_not_merged),
    ),
    Defect(
        "a client whose last events only are in a chunk loses the others",
        compaction._final_client,
        "elif runs:\nbreak  # a chunk of its own holds one range, and this would be one on either side of another's",
        "elif runs:\n    runs = []",
        a_test(test_archive.test_a_client_of_whom_a_chunk_holds_later_events_is_not_merged),
    ),
    Defect(
        "clock runs go on over the begin of a clock record",
        compaction._joined,
        "if runs and runs[-1].clock == run.clock and run.first_sequence not in clock_starts:",
        "if runs and runs[-1].clock == run.clock:",
        a_test(test_archive.test_a_clock_run_ends_where_a_clock_record_begins),
    ),
    Defect(
        "chunks that a predecessor should have deleted are left",
        archive._not_contained,
        "or held.end_sequence <= widest.first_sequence",
        "or True",
        a_test(test_archive.test_of_several_the_first_has_an_event),
    ),
    Defect(
        "a chunk is written again and again",
        growth._longest_run,
        "if largest <= events - largest:",
        "if True:",
        a_test(test_growth.test_how_many_chunks_and_how_often_an_event_is_written, seed=0),
    ),
    Defect(
        "a chunk is taken along over a gap",
        growth._latest_first,
        "if rest[client_id] and rest[client_id][-1].end_sequence >= next_sequence:",
        "if rest[client_id]:",
        a_test(test_growth.test_nothing_is_joined_over_a_gap),
    ),
    Defect(
        "half a chunk is left",
        compaction.tidy,
        "os.unlink(name, dir_fd=directory_number)",
        "pass",
        a_test(test_compaction.test_a_death_before_every_step),
    ),
    Defect(
        "segments that a predecessor should have deleted are left",
        compaction.tidy,
        "_remove(directory, merged, archive.superseded, directory_number)",
        "pass",
        a_test(test_compaction.test_two_chunks_of_the_same_events),
    ),
    Defect(
        "the claim is not touched before a chunk appears",
        chunking.write_chunk,
        "confirm()",
        "pass",
        a_test(test_chunking.test_it_appears_only_when_it_is_confirmed),
    ),
    Defect(
        "the checksum of records is not looked at with verification",
        chunk.ChunkPage.check,
        "if crc != self.entry.payload_crc:",
        "if False:",
        a_test(test_chunk.test_any_bit, packed=True),
    ),
    Defect(
        "the checksum of records is not looked at when they are fetched",
        chunk.ChunkPage.unpacked,
        "if crc32(packed) != entry.payload_crc:",
        "if False:",
        a_test(test_chunk.test_without_verification_damage_is_an_error_when_records_are_fetched),
    ),
    Defect(
        "a chunk that was cut or has grown is believed",
        chunk.Chunk.__init__,
        "if size_bytes != header.file_bytes:",
        "if False:",
        a_test(test_chunk.test_any_truncation),
    ),
    Defect(
        "events that a chunk does not hold are believed",
        chunk.ChunkPage.columns,
        "if bool(np.any((firsts < starts) | (counts > held) | (firsts - starts > held - counts))):",
        "if bool(np.any(firsts - starts + counts > held)):",
        a_test(test_chunk.test_hostile_pages, wrong={"table": [0, 1, 2, 1, 2**64 - 1, 0]}),
    ),
    Defect(
        "packed data of another size are believed",
        deflate.unpack,
        "if len(unpacked) != size_bytes or not unpacker.eof or unpacker.unused_data:",
        "if len(unpacked) > size_bytes:",
        a_test(test_chunk.test_a_list_that_unpacks_to_another_size, size=10**6 - 1),
    ),
    Defect(
        "a list of pages beyond the limits is believed",
        chunkformat.PageEntry.checked,
        "return self if sound else None",
        "return self",
        a_test(test_chunk.test_hostile_lists_of_pages, place=11, value=2**27 + 1),
    ),
]
"""Segments that are merged into chunks."""


def make_story(path: pathlib.Path) -> pathlib.Path:
    catalog = open_catalog(path / "store")
    catalog.create_chronicle("c", {})
    return catalog.ensure_story("c", "s", {})


def make_fresh(path: pathlib.Path) -> pathlib.Path:
    made = path / "fresh.log"
    made.touch()
    return made


MAKERS: dict[tuple[str, str], Callable[[pathlib.Path], object]] = {
    (test_corruption.__name__, "store"): lambda path: test_corruption.make_store(path / "store"),
    (test_fork.__name__, "store"): lambda path: path / "store",
    (test_fork.__name__, "client"): lambda path: connect(path / "store"),
    (test_catalog.__name__, "catalog"): lambda path: open_catalog(path / "store", patience_s=0.02),
    (test_catalog.__name__, "story"): make_story,
    (test_owner.__name__, "fresh"): make_fresh,
    (test_compaction.__name__, "store"): lambda path: test_compaction.make_store(path / "store"),
}
DEFECTS = [*WRITING, *CHILDREN, *READING, *NAMES, *MERGING]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_is_noticed(defect: Defect, request: pytest.FixtureRequest) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a test that fails leaves everything open
        with edited(defect.function, defect.old, defect.new):
            error = error_of(lambda: defect.noticed_by(request))
        gc.collect()
    assert error is not None, "nobody has noticed"
    assert "Timeout" not in str(error), "it hangs, which a test had better tell"
    assert not isinstance(error, (NameError, SyntaxError)), f"the edit itself is wrong: {error}"


def error_of(action: Callable[[], object]) -> BaseException | None:
    try:
        action()
    except (Exception, pytest.fail.Exception) as error:
        return error.with_traceback(None)
    return None
