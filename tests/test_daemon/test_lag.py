"""LoopLag: the largest lag of the last minute."""

from __future__ import annotations

import threading

from daemon.observability.lag import REMEMBERED_S, LoopLag


class Hands:
    """A clock that a test moves."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_the_largest_of_the_last_minute_is_told_and_then_forgotten() -> None:
    clock = Hands()
    lag = LoopLag(clock)
    assert lag.largest == 0.0
    for seconds in (0.2, 0.9, 0.1):
        clock.seconds += 1
        lag.note(seconds)
        clock.seconds += 1
    assert lag.largest == 0.9
    clock.seconds = 103 + REMEMBERED_S
    assert lag.largest == 0.9
    clock.seconds += 0.5
    assert lag.largest == 0.1
    clock.seconds += REMEMBERED_S
    assert lag.largest == 0.0


def test_however_often_it_is_told_little_is_remembered_and_threads_may_tell_it() -> None:
    lag = LoopLag()
    threads = [threading.Thread(target=lambda: [lag.note(n % 7 / 10) for n in range(5000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lag.largest == 0.6
    assert len(lag._seen) < 50
