"""A stop signal ends what can be begun again, and only asks what must be finished first."""

from __future__ import annotations

import os
import signal
import threading

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")

from training.signals import SIGNALS, StopSignals, catch_stop_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_before_training_a_signal_ends_the_process_with_status_0(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as ended, catch_stop_signals():
        os.kill(os.getpid(), number)
    assert ended.value.code == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_loop_the_first_signal_is_remembered_and_nothing_interrupted(
    number: signal.Signals,
) -> None:
    with catch_stop_signals() as signals, signals.defer():
        assert signals.received is None
        for each in (number, *SIGNALS):
            os.kill(os.getpid(), each)
        assert signals.received == number.name


def test_earlier_handlers_come_back() -> None:
    earlier = [signal.getsignal(number) for number in SIGNALS]
    with catch_stop_signals():
        assert [signal.getsignal(number) for number in SIGNALS] != earlier
    assert [signal.getsignal(number) for number in SIGNALS] == earlier


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[StopSignals] = []

    def work() -> None:
        with catch_stop_signals() as signals:
            found.append(signals)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found and found[0].received is None
