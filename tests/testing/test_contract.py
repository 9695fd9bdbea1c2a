"""The contract suite notices engines that break the contract."""

from __future__ import annotations

import subprocess
import sys

import pytest

from py_chronolog_client.engine.base import Capabilities, Engine
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.testing import EngineContract, ToyEngine
from py_chronolog_client.testing.contract import Probe
from tests.testing import defects

NOTICED_BY = [
    (defects.DropsTheLastEvent, "test_records_come_back_byte_for_byte"),
    (defects.RepeatsAnEvent, "test_order_holds_for_colliding_times"),
    (defects.OrdersTiesByChance, "test_order_is_time_client_sequence"),
    (defects.SwapsTiesOfAClient, "test_order_is_time_client_sequence"),
    (defects.CutsSequences, "test_sequences_are_64_bits_and_indexes_their_low_32"),
    (defects.RoundsTimes, "test_the_largest_times_are_times"),
    (defects.StripsZeros, "test_records_come_back_byte_for_byte"),
    (defects.LosesEmptyRecords, "test_records_of_a_batch_come_back_byte_for_byte"),
    (defects.HasOnePage, "test_pages_are_bounded_and_in_order_together"),
    (defects.ExcludesTheEnd, "test_a_range_includes_both_ends"),
    (defects.ExcludesTheEnd, "test_every_range_of_a_story"),
    (defects.ExcludesTheStart, "test_a_range_includes_both_ends"),
    (defects.IgnoresSnapshots, "test_a_snapshot_stays_what_it_is"),
    (defects.IgnoresSnapshots, "test_a_snapshot_cuts_the_events_of_a_client"),
    (defects.TakesNoSnapshot, "test_a_running_scan_does_not_see_new_events"),
    (defects.IgnoresSince, "test_since_leaves_out_what_was_seen"),
    (defects.IgnoresClients, "test_only_the_given_clients_are_delivered"),
    (defects.IgnoresDeadlines, "test_a_deadline_ends_a_long_scan"),
    (defects.HidesDamage, "test_damage_is_reported_or_raised_at_the_end"),
    (defects.FollowsByTime, "test_a_late_event_with_an_old_time_is_delivered_once"),
    (defects.FollowsFromTheStart, "test_every_event_is_delivered_once_while_a_thread_writes"),
    (defects.FollowsOnlyKnownClients, "test_a_late_event_with_an_old_time_is_delivered_once"),
    (defects.FollowsWithoutWaiting, "test_following_wakes_up_for_an_event"),
    (defects.DestroysWhatIsAcquired, "test_an_acquired_story_is_not_destroyed"),
    (defects.ListsInOrderOfCreation, "test_chronicles_are_listed_sorted"),
    (defects.HandsOutItsAttributes, "test_chronicle_attributes_are_kept_as_they_were_given"),
    (defects.CreatesWhatIsMissing, "test_opening_a_writer_does_not_create_the_chronicle"),
    (defects.ReplacesAttributes, "test_story_attributes_are_those_of_its_creation"),
    (defects.ForgetsDescriptions, "test_what_clients_say_of_themselves_is_kept"),
    (defects.SplitsBatches, "test_a_batch_has_one_time"),
    (defects.SplitsBatches, "test_readers_see_whole_batches_and_no_gaps_while_threads_write"),
    (defects.DoesNotFlush, "test_acknowledged_events_are_readable"),
    (defects.AcknowledgesACount, "test_statistics_tell_what_became_of_events"),
    (defects.ForgetsRefusals, "test_events_for_a_closed_writer_are_refused_and_counted"),
    (defects.RaisesWhenClosed, "test_events_for_a_closed_writer_are_refused_and_counted"),
    (defects.TakesAnything, "test_what_is_no_record_is_a_type_error_and_appends_nothing"),
    (defects.KeepsItsFirstClock, "test_times_never_decrease_under_another_clock"),
    (defects.KeepsItsFirstClock, "test_the_model_of_the_clock_is_kept"),
    (defects.LetsTimesGoBack, "test_times_never_decrease"),
    (defects.NumbersByLength, "test_threads_share_a_writer"),
    (defects.WaitsForItself, "test_a_signal_handler_logs_through_the_writer_it_interrupted"),
    (defects.SharesClientsWithChildren, "test_a_forked_child_is_a_client_of_its_own"),
]
PARAMETERS = {
    "test_order_holds_for_colliding_times": {"seed": 1},
    "test_pages_are_bounded_and_in_order_together": {"step_ns": 1},
    "test_what_is_no_record_is_a_type_error_and_appends_nothing": {"position": 0},
}
FAILURES = (AssertionError, pytest.fail.Exception, ChronoLogError, RuntimeError)


class Suite(EngineContract):
    page_events = 7

    def make_engine(self) -> Engine:
        return ToyEngine()

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        assert isinstance(engine, ToyEngine)
        engine.spoil(chronicle, story, client_id, 1)
        return True


def run(test: str, engine: Engine) -> None:
    probe = Probe(engine, Suite.page_events)
    try:
        getattr(Suite(), test)(probe, **PARAMETERS.get(test, {}))
    finally:
        probe.close()


@pytest.mark.parametrize(
    ("defective", "test"), NOTICED_BY, ids=[f"{defect.__name__}-{test}" for defect, test in NOTICED_BY]
)
def test_a_defect_is_noticed(defective: type[ToyEngine], test: str) -> None:
    with pytest.raises(FAILURES):
        run(test, defective())


@pytest.mark.parametrize("test", sorted({test for _, test in NOTICED_BY}))
def test_a_sound_engine_is_left_alone(test: str) -> None:
    run(test, ToyEngine())


def test_what_an_engine_does_not_claim_is_skipped() -> None:
    class Modest(ToyEngine):
        capabilities = Capabilities(False, False, False, False)

    with pytest.raises(pytest.skip.Exception):
        run("test_times_never_decrease", Modest())
    with pytest.raises(pytest.skip.Exception):
        run("test_events_of_a_killed_process_are_there", Modest())
    with pytest.raises(pytest.skip.Exception):
        run("test_another_engine_sees_the_same_catalog", Modest())
    run("test_log_event_returns_the_time_of_the_event", Modest())


def test_the_tools_that_a_test_does_not_ask_for_are_not_imported() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['pytest', 'hypothesis', 'numpy']));"
        "from py_chronolog_client.testing import ManualClock, ToyEngine;"
        "from py_chronolog_client.engine.base import WriterOptions;"
        "engine = ToyEngine(); engine.create_chronicle('c', {});"
        "writer = engine.open_writer('c', 's', {}, WriterOptions(1, ManualClock(5)));"
        "assert writer.log_event('text') == 5; assert writer.flush() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_failing_assertion_shows_its_values() -> None:
    with pytest.raises(AssertionError, match=r"\[100, 200\]|assert \["):
        run("test_a_range_includes_both_ends", defects.ExcludesTheEnd())
