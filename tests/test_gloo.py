import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.gloo import GlooPool, RankError


def sum_of_ranks(group, scale):
    x = torch.tensor([scale * dist.get_rank(group)])
    dist.all_reduce(x, group=group)
    return dist.get_rank(group), x.item()


def fail_on_rank_1(group):
    if dist.get_rank(group) == 1:
        raise ValueError("as planned")
    dist.barrier(group)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_results_come_in_rank_order(gloo_pool, size):
    total = 3 * size * (size - 1) // 2
    assert gloo_pool(size).run(sum_of_ranks, 3) == [(rank, total) for rank in range(size)]


def test_other_sizes_are_refused(gloo_pool):
    with pytest.raises(ValueError, match=r"groups of \(1, 2, 4, 8\) ranks, not of 3"):
        gloo_pool(3).run(sum_of_ranks, 1)


def test_a_failure_is_reported_and_the_pool_starts_again():
    pool = GlooPool(2)  # its own, not to restart the one of the session
    try:
        with pytest.raises(ValueError, match=r"groups of \(1, 2\) ranks, not of 4"):
            pool.run(4, sum_of_ranks, 1)
        with pytest.raises(RankError, match=r"rank 1: (.|\n)*ValueError: as planned"):
            pool.run(2, fail_on_rank_1)
        assert pool.run(2, sum_of_ranks, 1) == [(0, 1), (1, 1)]
    finally:
        pool.stop()


def sleep_in(group, folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def sleeping_pool(folder):
    GlooPool(2).run(2, sleep_in, folder)


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    parent = multiprocessing.get_context("spawn").Process(target=sleeping_pool, args=(tmp_path,))
    parent.start()
    while len(ranks := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.is_alive()
        time.sleep(0.1)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 60
    while any(map(is_running, ranks)):
        assert time.monotonic() < deadline, "a rank survives"
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
