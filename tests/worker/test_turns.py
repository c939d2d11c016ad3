"""The lock that goes round."""

import threading
import time

from worker.turns import Turns


def test_threads_that_want_it_all_the_time_have_it_equally_often() -> None:
    turns, counts, stop = Turns(), [0, 0, 0], threading.Event()
    all_there = threading.Barrier(3)
    inside = 0

    def work(number: int) -> None:
        nonlocal inside
        all_there.wait()
        while not stop.is_set():
            with turns:
                inside += 1
                assert inside == 1
                time.sleep(0.001)
                inside -= 1
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while min(counts) < 20:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert max(counts) - min(counts) <= 2
