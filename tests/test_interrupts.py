"""The first signal asks, a later one forces, and the same request sent twice is one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from retinanet import signals as interrupts
from retinanet.signals import Signals, Stopped, postponed

PROGRAM = """
import sys, time
from retinanet.signals import Signals
with Signals() as signals:
    signals.has_begun = True
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    while signals.received is None:
        time.sleep(0.01)
    time.sleep(60)
"""


def test_the_first_signal_is_remembered_and_handlers_are_given_back(capfd):
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with Signals() as signals:
        signals.has_begun = True
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGUSR1
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert capfd.readouterr().err.count("saves and ends after its step") == 1


def test_a_second_signal_soon_after_is_the_same_request_and_a_later_one_forces():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        time.sleep(interrupts.SAME_REQUEST_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM


def test_before_there_is_something_to_save_a_signal_ends_at_once(capfd):
    with pytest.raises(Stopped), Signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert "SIGTERM: ended before the first step" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_postponed_signal_is_heard_where_it_is_asked_for(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), postponed() as check:
        check()
        os.kill(os.getpid(), number)
        done = "the work of this moment"
        check()
    assert done
    assert signal.getsignal(number) == before


def test_a_postponed_signal_that_comes_again_ends_at_once():
    program = PROGRAM.replace("Signals", "postponed").replace("    signals.has_begun = True\n", "")
    program = program.replace("while signals.received is None", "while True")
    program = "\n    ".join(["try:", *program.split("\n")]) + "\nfinally:\n    sys.exit(7)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(interrupts.SAME_REQUEST_SECONDS + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 7  # its last acts were done
        assert b"SIGTERM: this ends after its step" in process.stderr.read()


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with postponed() as check:
            os.kill(os.getpid(), signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_nobody_reading_does_not_keep_a_signal_from_being_heard():
    program = PROGRAM.replace("time.sleep(60)", "sys.exit(7)")
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 7
