"""What Consumer promises, AsyncConsumer and lanes promise too: the same tests."""

import pytest

from tests.consumer.test_crash import (
    own_postgres,
    own_stage,
    test_a_commit_that_happened_though_its_answer_was_lost_is_not_repeated,
)
from tests.consumer.test_deadly import test_a_handler_that_waits_too_long_in_the_database_is_interrupted
from tests.consumer.test_exactly_once import (
    test_bulk_handlers_get_neighbours_of_one_type_in_order,
    test_events_reach_the_handler_of_their_type_with_their_record,
)
from tests.consumer.test_failures import (
    test_a_handler_cannot_commit_part_of_a_batch,
    test_a_handler_that_rolls_back_and_returns_is_an_error,
    test_a_handler_that_swallows_a_database_error_is_an_error,
    test_an_error_that_passes_in_time_is_survived,
    test_work_that_a_handler_only_prepares_is_not_taken_for_done,
)
from tests.consumer.test_fencing import (
    test_a_batch_polled_before_a_claim_changes_nothing_after_it,
    test_without_the_epoch_a_fenced_batch_goes_through,
)
from tests.consumer.test_parking import (
    keyed,
    test_a_poison_waits_with_the_later_records_of_its_key_and_all_others_go_on,
    test_a_record_that_fails_again_stays_first_of_its_key,
)
from tests.consumer.test_together import test_a_partition_claimed_by_another_fences_itself_alone

pytestmark = pytest.mark.parametrize("kind", ["async", "lanes"], indirect=True)

__all__ = [
    "keyed",
    "own_postgres",
    "own_stage",
    "test_a_batch_polled_before_a_claim_changes_nothing_after_it",
    "test_a_commit_that_happened_though_its_answer_was_lost_is_not_repeated",
    "test_a_handler_cannot_commit_part_of_a_batch",
    "test_a_handler_that_rolls_back_and_returns_is_an_error",
    "test_a_handler_that_swallows_a_database_error_is_an_error",
    "test_a_handler_that_waits_too_long_in_the_database_is_interrupted",
    "test_a_partition_claimed_by_another_fences_itself_alone",
    "test_a_poison_waits_with_the_later_records_of_its_key_and_all_others_go_on",
    "test_a_record_that_fails_again_stays_first_of_its_key",
    "test_an_error_that_passes_in_time_is_survived",
    "test_bulk_handlers_get_neighbours_of_one_type_in_order",
    "test_events_reach_the_handler_of_their_type_with_their_record",
    "test_without_the_epoch_a_fenced_batch_goes_through",
    "test_work_that_a_handler_only_prepares_is_not_taken_for_done",
]
