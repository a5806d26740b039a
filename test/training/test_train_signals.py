"""A stop signal ends what can be begun again, and only asks what must be finished first."""

from __future__ import annotations

import os
import signal
import threading

import pytest

pytest.importorskip("torch", reason="needs the extra [train]")

import training.signals
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


def test_before_training_ctrl_c_is_what_it_always_is() -> None:
    with pytest.raises(KeyboardInterrupt), catch_stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")


def test_in_the_loop_ctrl_c_is_noted_told_and_raised_once_the_rest_is_done(
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), catch_stop_signals() as signals:
        with signals.defer():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, passed on by torchrun
            assert signals.received == "Ctrl-C"
        done = True
    assert done
    assert capfd.readouterr().err.count("saved first") == 1


def test_another_ctrl_c_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), catch_stop_signals() as signals, signals.defer():
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(training.signals, "SAME_S", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")


def test_a_process_that_ignores_ctrl_c_goes_on_doing_so() -> None:
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_stop_signals() as signals, signals.defer():
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_earlier_handlers_come_back() -> None:
    caught = (*SIGNALS, signal.SIGINT)
    earlier = [signal.getsignal(number) for number in caught]
    with catch_stop_signals():
        now = [signal.getsignal(number) for number in caught]
        assert all(one != other for one, other in zip(now, earlier, strict=True))
    assert [signal.getsignal(number) for number in caught] == earlier


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[StopSignals] = []

    def work() -> None:
        with catch_stop_signals() as signals:
            found.append(signals)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found and found[0].received is None
