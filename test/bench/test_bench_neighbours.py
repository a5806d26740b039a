"""Who else used the processors: what this process and its children used is told apart."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from vla_align_ros.bench.neighbours import Neighbours

BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_what_own_children_used_is_own() -> None:
    neighbours, start_s = Neighbours(), time.monotonic()
    subprocess.run([sys.executable, "-c", BURN.format(0.6)], check=True)
    found = neighbours.describe()
    available_s = (time.monotonic() - start_s) * (os.cpu_count() or 1)
    assert 0.5 / available_s < found["own"] < 1.2 / available_s
    assert 0.0 <= found["others"] <= 1.0


def test_what_others_used_is_not() -> None:
    neighbours = Neighbours()
    child = subprocess.Popen([sys.executable, "-c", BURN.format(3.0)])
    time.sleep(1.0)
    found = neighbours.describe()  # the child has not ended: it counts as another
    child.kill()
    child.wait()
    assert found["others"] > 0.05 and found["own"] < 0.2
