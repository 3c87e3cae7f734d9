"""Pages of the host's memory: what the operating system sees of them."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.vattention.conftest import PAGE, in_child
from tests.vattention.test_pages import give_back, laid, memory
from trimtab.backing import Backing
from trimtab.errors import TrimtabError
from trimtab.vattention import host
from trimtab.vattention.host import HUGE_PAGE, HostPool
from trimtab.vattention.pages import Access, KVOutOfMemory, PageError

TIB = 1 << 40
UNUSED_ACCESS = host._UNUSED_ACCESS


def mappings() -> list[str]:
    """Return the kernel's mappings of the pools' files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "memfd:trimtab-kv" in line]


def proportional_bytes() -> int:
    """Return the memory of the pools' files in this process, shared pages divided (PSS)."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            ours = "memfd:trimtab-kv" in line
        elif ours and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pool():
    return HostPool(PAGE)


def test_the_granularity_is_the_systems_page(pool):
    assert pool.granularity == os.sysconf("SC_PAGESIZE") == mmap.PAGESIZE
    assert (pool.backend, pool.device) == ("host", torch.device("cpu"))


def test_a_page_larger_than_the_machines_memory_is_refused():
    memory = PAGE * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(ValueError, match=f"expected at most {memory}, the machine's memory"):
        HostPool(TIB * PAGE)
    HostPool(memory).close()


@pytest.mark.parametrize("page_bytes", [PAGE, 3 * PAGE, 1 << 21])
def test_reserving_more_than_any_machine_has_takes_no_memory(page_bytes):
    with HostPool(page_bytes) as pool:
        before = int(Path("/proc/self/statm").read_text().split()[1])
        nbytes = 16 * TIB // page_bytes * page_bytes
        ranges = [pool.reserve(nbytes) for _ in range(3)]
        assert pool.stats().reserved == 3 * nbytes
        assert pool.stats().measured == 0
        assert all(reservation.address % page_bytes == 0 for reservation in ranges)
        assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 1000
        # The far end can be used like the near one.
        last = nbytes - page_bytes
        pages = pool.create([ranges[1].address + last])
        pool.map(ranges[1], last, pages)
        pool.protect(ranges[1], last, page_bytes, Access.write)
        pool.tensor(ranges[1], last, [page_bytes], [1], torch.uint8).fill_(1)
        assert pool.stats().measured == page_bytes
        give_back(pool, ranges[1], pages)
        pool.free(ranges[0])
        pool.free(ranges[2])


@pytest.mark.parametrize("choice", Backing)
@pytest.mark.parametrize("page_bytes", [PAGE, HUGE_PAGE // 2, HUGE_PAGE, 2 * HUGE_PAGE])
def test_pages_of_a_huge_ones_size_are_huge_unless_refused(choice, page_bytes):
    """Whatever the system's own setting for files in memory is."""
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("the system has no huge pages")
    code = (
        "from trimtab.backing import Backing, huge_cache_bytes, use_pages\n"
        f"use_pages(Backing({str(choice)!r}))\n"
        "from tests.vattention.test_pages import laid, memory\n"
        "from trimtab.vattention.host import HostPool\n"
        f"with HostPool({page_bytes}) as pool:\n"
        "    reservation, pages = laid(pool, 3)\n"
        "    assert memory(pool, reservation).count_nonzero() == 0\n"
        "    memory(pool, reservation).fill_(7)\n"
        "    assert int(memory(pool, reservation).min()) == 7\n"
        "    print(huge_cache_bytes() / pool.stats().measured)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    huge = choice is Backing.huge and page_bytes % HUGE_PAGE == 0
    assert done.stdout == f"{float(huge)}\n", done.stderr


def test_unused_addresses_read_as_zeros_without_taking_memory(monkeypatch):
    monkeypatch.setattr(host, "_UNUSED_ACCESS", UNUSED_ACCESS)
    with HostPool(PAGE) as pool:
        reservation, pages = laid(pool, 3)
        rows = memory(pool, reservation)
        rows.fill_(7)
        assert "7, 7" in str(rows)
        pool.unmap(reservation, PAGE, PAGE)
        assert rows.amax(1).tolist() == [7, 0, 7]
        assert in_child(rows[1].fill_, 1) == -signal.SIGSEGV
        wide = pool.reserve(1 << 30)
        before = int(Path("/proc/self/statm").read_text().split()[1])
        assert pool.tensor(wide, 0, [1 << 18], [PAGE], torch.uint8).count_nonzero() == 0
        assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 1000
        del rows
        pool.free(wide)
        give_back(pool, reservation, pages)


def test_takes_no_more_addresses_than_requested():
    """Although it first reserves more, to find a multiple of the page."""
    GIB = 1 << 30

    def virtual_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    with HostPool(GIB) as pool:
        before = virtual_bytes()
        reservation = pool.reserve(2 * GIB)
        assert 2 * GIB <= virtual_bytes() - before < 2.1 * GIB
        pool.free(reservation)
        assert virtual_bytes() - before < 0.1 * GIB


def test_more_addresses_than_there_are_is_an_error_with_a_hint(pool):
    with pytest.raises(PageError, match=r"mmap: \[ENOMEM\].*ulimit -v.*max_map_count"):
        pool.reserve(1 << 60)
    assert pool.stats().reserved == 0


def test_memory_is_taken_when_a_page_is_created_and_never_when_it_is_touched(pool):
    reservation, pages = laid(pool, 50)
    assert pool.stats().measured == pool.stats().committed == 50 * PAGE
    memory(pool, reservation).fill_(1)
    assert pool.stats().measured == 50 * PAGE
    give_back(pool, reservation, pages)
    assert pool.stats().measured == 0


def test_pages_are_zero_when_fresh_and_when_recycled(pool):
    """What was written is not seen again, at the same place in the file or elsewhere."""
    reservation = pool.reserve(8 * PAGE)
    for at in (reservation.address, 0, reservation.address):
        pages = pool.create([at + n * PAGE for n in range(8)])
        pool.map(reservation, 0, pages)
        pool.protect(reservation, 0, reservation.nbytes, Access.write)
        rows = memory(pool, reservation)
        assert rows.count_nonzero() == 0
        rows.fill_(0xFF)
        del rows
        pool.unmap(reservation, 0, reservation.nbytes)
        for page in pages:
            pool.release(page)
    pool.free(reservation)


def test_the_systems_count_agrees_with_ours_within_a_page(pool):
    reservation, pages = laid(pool, 40)
    before = proportional_bytes()
    memory(pool, reservation).fill_(1)
    assert abs(proportional_bytes() - before - pool.stats().committed) <= PAGE
    # Ten of them are mapped twice: memory is counted once.
    other = pool.reserve(10 * PAGE)
    pool.map(other, 0, pages[:10])
    pool.protect(other, 0, other.nbytes, Access.read)
    assert memory(pool, other).min() == 1
    assert abs(proportional_bytes() - before - pool.stats().committed) <= PAGE
    assert pool.stats().measured == pool.stats().committed == 40 * PAGE
    pool.unmap(other, 0, other.nbytes)
    pool.free(other)
    give_back(pool, reservation, pages)
    assert proportional_bytes() == before


class TestKernelMappings:
    def test_neighbours_created_one_by_one_are_merged(self, pool):
        others = len(mappings())
        reservation = pool.reserve(500 * PAGE)
        pages = []
        # From the middle outwards, as slots grow in turn.
        for n in [
            n for pair in zip(range(249, -1, -1), range(250, 500), strict=True) for n in pair
        ]:
            pages += pool.create([reservation.address + n * PAGE])
            pool.map(reservation, n * PAGE, pages[-1:])
            pool.protect(reservation, n * PAGE, PAGE, Access.write)
        assert len(mappings()) - others == 1
        give_back(pool, reservation, pages)
        assert len(mappings()) == others

    def test_recycled_places_are_merged_again(self, pool):
        others = len(mappings())
        reservation, pages = laid(pool, 100)
        for page in pages:
            pool.release(page)
        for n in range(0, 100, 3):
            pool.unmap(reservation, n * PAGE, PAGE)
        assert len(mappings()) - others == 33
        for n in range(0, 100, 3):
            (page,) = pool.create([reservation.address + n * PAGE])
            pool.map(reservation, n * PAGE, [page])
            pool.release(page)
        pool.protect(reservation, 0, reservation.nbytes, Access.write)
        assert len(mappings()) - others == 1
        give_back(pool, reservation, [])

    def test_pages_whose_place_is_taken_are_merged_elsewhere(self, pool):
        others = len(mappings())
        reservation = pool.reserve(100 * PAGE)
        pages = pool.create([reservation.address] * 100)
        assert len({page.handle for page in pages}) == 100
        pool.map(reservation, 0, pages)
        assert len(mappings()) - others == 2
        give_back(pool, reservation, pages)

    @pytest.mark.parametrize("place", [-PAGE, 1, PAGE + 1, 1 << 48, 1 << 62, 1 << 70])
    def test_a_place_need_not_be_the_address_of_a_page(self, pool, place):
        pages = pool.create([place, place])
        assert pages[0].handle != pages[1].handle
        assert pool.stats().measured == 2 * PAGE
        for page in pages:
            pool.release(page)

    def test_pages_of_one_range_never_overlap_those_of_another(self):
        """The system reuses the addresses of freed ranges; pages are larger than its own."""
        with HostPool(3 * PAGE) as pool:
            kept = []
            for count in (1, 2, 3, 5, 2, 1, 4):
                reservation, pages = laid(pool, count)
                memory(pool, reservation).fill_(count)
                kept += pages
                pool.unmap(reservation, 0, reservation.nbytes)
                pool.free(reservation)
            starts = sorted(page.handle for page in kept)
            assert all(b - a >= 3 * PAGE for a, b in pairwise(starts))
            assert pool.stats().measured == len(kept) * 3 * PAGE

    @pytest.mark.parametrize("access", [UNUSED_ACCESS, 0])
    def test_more_than_the_kernel_has_is_refused_and_undone(self, monkeypatch, access):
        monkeypatch.setattr(host, "_UNUSED_ACCESS", access)
        pool = HostPool(PAGE)
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        if limit > 100_000:
            pytest.skip(f"vm.max_map_count={limit}")
        others = len(mappings())
        reservation = pool.reserve((limit + 2) * PAGE)
        pages = pool.create([reservation.address + PAGE])
        pool.map(reservation, PAGE, pages)
        with pytest.raises(PageError, match=r"mmap: \[ENOMEM\].*vm\.max_map_count"):
            # The same block repeated: the kernel merges none of these mappings.
            pool.map(reservation, 2 * PAGE, pages * limit)
        assert len(mappings()) - others == 1
        pool.protect(reservation, PAGE, PAGE, Access.write)
        pool.tensor(reservation, PAGE, [PAGE], [1], torch.uint8).fill_(1)
        give_back(pool, reservation, pages)


class TestRefusals:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
    def test_no_memory_left(self, pool, monkeypatch, code):
        def full(*arguments):
            raise OSError(code, os.strerror(code))

        pages = pool.create([0])
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(KVOutOfMemory, match=r"needs 8192 bytes of pages: 0 are left") as error:
            pool.create([PAGE, 2 * PAGE])
        assert isinstance(error.value, TrimtabError)
        assert pool.stats().committed == pool.stats().measured == PAGE
        monkeypatch.undo()
        pages += pool.create([PAGE, 2 * PAGE])
        assert sorted(page.handle for page in pages) == [0, PAGE, 2 * PAGE]

    def test_a_full_file_system_shows_when_creating_not_when_touching(self, tmp_path):
        """On a file system of 16 pages, in place of a memfd."""
        script = (
            "import os, sys\n"
            "os.memfd_create = lambda name: os.open(sys.argv[1] + '/x', os.O_RDWR | os.O_CREAT)\n"
            "from tests.vattention.test_pages import fill, give_back, laid, memory\n"
            "from trimtab.vattention.host import HostPool\n"
            "from trimtab.vattention.pages import KVOutOfMemory\n"
            "pool = HostPool(4096)\n"
            "reservation, pages = laid(pool, 10)\n"
            "try:\n"
            "    pool.create([0] * 20)\n"
            "except KVOutOfMemory as error:\n"
            "    print(error.needed // 4096, error.free // 4096)\n"
            "fill(pool, memory(pool, reservation), 1)\n"
            "print(pool.stats().measured // 4096)\n"
            "give_back(pool, reservation, pages)\n"
            "print(pool.stats().measured)\n"
        )
        mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
        if subprocess.run([*mounted, mount], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        done = subprocess.run(
            [*mounted, f'{mount} && exec "$@"', "sh", sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        needed, free, held, left = map(int, done.stdout.split())
        assert needed == 20
        # The file's index takes some of them.
        assert 0 < free <= 6
        assert (held, left) == (10, 0)

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
    def test_no_memfd(self, monkeypatch, code):
        def refused(*arguments):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "memfd_create", refused)
        name = errno.errorcode[code]
        with pytest.raises(TrimtabError, match=rf"memfd_create: \[{name}\].*seccomp.*ulimit -n"):
            HostPool(PAGE)

    def test_no_large_files(self, pool):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
        try:
            with pytest.raises(PageError, match=r"fallocate: \[EFBIG\].*ulimit -f unlimited"):
                pool.create([1 << 40])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert pool.stats().handles == pool.stats().measured == 0


class TestClosing:
    def test_gives_the_file_back(self):
        gc.collect()
        before = open_files()
        with HostPool(PAGE) as pool:
            pool.create([0])
            assert open_files() == before + 1
        assert open_files() == before
        pool.close()

    def test_a_pool_that_is_dropped_leaves_nothing(self):
        gc.collect()
        files, others = open_files(), len(mappings())
        for _ in range(5):
            pool = HostPool(PAGE)
            laid(pool, 3)
        assert open_files() == files + 1
        del pool
        gc.collect()
        assert open_files() == files
        assert len(mappings()) == others

    def test_the_file_is_not_inherited_by_commands(self, pool):
        pool.create([0])
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True)
        assert "trimtab-kv" not in listed.stdout
