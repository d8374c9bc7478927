"""The first signal asks, a later one forces, and the same request sent twice is one."""

import os
import signal
import subprocess
import sys
import time

from retinanet import interrupts
from retinanet.interrupts import Signals

PROGRAM = """
import sys, time
from retinanet.interrupts import Signals
with Signals() as signals:
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    while signals.received is None:
        time.sleep(0.01)
    time.sleep(60)
"""


def test_the_first_signal_is_remembered_and_handlers_are_given_back(capfd):
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with Signals() as signals:
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
        time.sleep(interrupts.SAME_REQUEST)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == -signal.SIGTERM
