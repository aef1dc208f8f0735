"""Work in a daemon thread when the program ends: asked to stop, and waited for."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading
from concurrent.futures import ThreadPoolExecutor
from segwright.core.interrupt import StopRequest

stop, begun = StopRequest(), threading.Event()

def work():
    with stop.watched(), ThreadPoolExecutor(1) as pool:
        while not stop.reason:
            pool.submit(begun.set).result()
    print("ended because", stop.reason, flush=True)

threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


def test_a_program_that_ends_waits_for_a_step_in_a_daemon_thread() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("ended because the program is exiting\n", "")
