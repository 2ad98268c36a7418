"""Wait longer after each failure, never in step with others, never in the thread that polls Kafka."""

from tenacity import RetryCallState, wait_exponential, wait_random
from tenacity.wait import wait_base

FAILURE = wait_exponential(multiplier=0.1, exp_base=2, max=15.0) + wait_random(0.0, 0.25)
"""Between tries of a record or a claim: 0.1, 0.2, 0.4 … 15 s, plus up to 0.25 s."""

FENCED = wait_random(0.2, 2.0)
"""Before claiming back what somebody else claimed: long enough to hear that the partition is theirs."""

DISPUTED = wait_exponential(multiplier=0.5, exp_base=2, max=30.0) + wait_random(0.0, 1.0)
"""Before claiming back what another process was given by hand as well: 0.5, 1, 2 … 30 s."""


def seconds(wait: wait_base, failures: int) -> float:
    """How long to wait after the `failures`-th failure in a row (from 1)."""
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
    state.attempt_number = failures
    return float(wait(state))
