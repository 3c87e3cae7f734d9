"""Which sequence prefills, which decode and which wait."""

from __future__ import annotations

from trimtab.generation.scheduler import Chunk, Scheduler


def test_a_prompt_is_prefilled_in_chunks_of_its_own():
    scheduler = Scheduler([5, 4], slots=2, chunk=2)
    assert scheduler.next() == 0
    scheduler.admit()
    chunks = []
    while (chunk := scheduler.chunk()) is not None:
        assert scheduler.next() is None  # one at a time
        chunks.append(chunk)
        scheduler.prefilled(chunk)
    assert chunks == [Chunk(0, 0, 2, False), Chunk(0, 2, 4, False), Chunk(0, 4, 5, True)]
    assert scheduler.running == [0]
    assert scheduler.next() == 1


def test_the_youngest_waits_at_the_front_until_another_is_finished():
    scheduler = Scheduler([1, 1, 1, 1], slots=3, chunk=8)
    for _ in range(2):
        scheduler.admit()
        scheduler.prefilled(scheduler.chunk())
    scheduler.admit()
    assert scheduler.preempt() == 2  # still prefilling
    assert scheduler.preempt() == 1
    assert list(scheduler.waiting) == [1, 2, 3]
    assert scheduler.next() is None
    scheduler.finish(0)
    assert scheduler.next() == 1
