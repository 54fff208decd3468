"""GPUs and threads of workers, tested without GPUs."""

import multiprocessing
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import quick
from skorch.callbacks import Callback

from skbsd import _workers
from skbsd._checks import check_device
from skbsd._workers import choose_gpu, free_memories, threads, threads_given

GB = 2**30


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Simulate three GPUs, all visible to each process."""
    state = SimpleNamespace(free=[70 * GB] * 3, current=0, asked=[])

    def mem_get_info(gpu):
        state.asked.append(gpu)
        return state.free[gpu], 80 * GB

    cuda = _workers.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: len(state.free))
    monkeypatch.setattr(cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=f"u{gpu}")
    )
    monkeypatch.setattr(_workers.tempfile, "gettempdir", lambda: str(tmp_path))
    _workers._claimed.cache_clear()
    yield state
    _workers._claimed.cache_clear()


def in_processes(n, call):
    """Return the GPUs that several concurrent processes get."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(n), context.Queue()

    def run():
        results.put((call(), call()))
        barrier.wait(30)

    processes = [context.Process(target=run) for _ in range(n)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    return found


class TestOwnGPU:
    def test_workers_that_start_at_once_take_different_ones(self, gpus):
        found = in_processes(3, lambda: check_device("auto").index)
        assert sorted(found) == [(0, 0), (1, 1), (2, 2)]  # and each keeps its own

    def test_more_workers_than_gpus(self, gpus):
        found = in_processes(7, lambda: check_device("auto").index)
        numbers = [gpu for gpu, _ in found]
        assert sorted(map(numbers.count, range(3))) == [2, 2, 3]

    def test_a_full_one_is_left_to_others(self, gpus):
        gpus.free[0] = 20 * GB
        found = in_processes(4, lambda: check_device("auto").index)
        assert sorted(gpu for gpu, _ in found) == [1, 1, 2, 2]

    def test_one_that_died_makes_room(self, gpus):
        (first,) = in_processes(1, lambda: check_device("auto").index)
        (second,) = in_processes(1, lambda: check_device("auto").index)
        assert first == second == (0, 0)

    def test_what_was_assigned(self, gpus):
        """GPU set by CUDA_VISIBLE_DEVICES, or by the user when the worker started."""
        gpus.current = 2
        assert in_processes(1, lambda: check_device("auto").index) == [(2, 2)]
        gpus.current, gpus.free = 0, [GB]
        assert in_processes(2, lambda: check_device("auto").index) == [(0, 0)] * 2
        assert in_processes(1, lambda: len(gpus.asked)) == [(0, 0)]

    def test_others_than_workers_take_the_current_one(self, gpus):
        gpus.free[0] = 0
        assert check_device("auto") == torch.device("cuda", 0)
        assert not gpus.asked

    def test_the_first_process_of_a_single_fit(self, gpus, monkeypatch):
        """Each process was assigned its GPU, the first one the first GPU."""
        gpus.free[0] = 20 * GB
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        assert in_processes(1, lambda: check_device("auto").index) == [(0, 0)]

    def test_without_locks(self, gpus, monkeypatch):
        monkeypatch.setattr(_workers, "fcntl", None)
        gpus.free[1] = 0
        (found,) = in_processes(1, lambda: (check_device("auto").index, os.getpid()))
        gpu, pid = found[0]
        assert gpu == [0, 2][pid % 2]

    def test_the_most_free_comes_first(self):
        tried = []

        def claim(gpu, slot):
            tried.append((gpu, slot))
            return slot == 1

        assert choose_gpu([6, 1, 9, 7], claim) == 2
        assert tried == [(2, 0), (3, 0), (0, 0), (2, 1)]


class TestFreeMemory:
    @staticmethod
    def pretend(monkeypatch, listed):
        def run(command, **kwargs):
            assert command[0] == "nvidia-smi"
            if isinstance(listed, Exception):
                raise listed
            return SimpleNamespace(stdout=listed)

        monkeypatch.setattr(_workers.subprocess, "run", run)

    def test_of_the_driver(self, gpus, monkeypatch):
        self.pretend(monkeypatch, "GPU-u2, 100\nGPU-other, 7\nGPU-u0, 300\n")
        assert free_memories(["u0", "u2"]) == [300 * 2**20, 100 * 2**20]
        assert not gpus.asked  # which would take memory of each

    @pytest.mark.parametrize(
        "listed",
        [
            FileNotFoundError("nvidia-smi"),
            subprocess.CalledProcessError(9, "nvidia-smi"),
            "",
            "GPU-u0, [N/A]\nGPU-u1, 3\n",
        ],
    )
    def test_of_torch(self, gpus, monkeypatch, listed):
        self.pretend(monkeypatch, listed)
        assert free_memories(["u0", "u1"]) == [70 * GB] * 2


class Threads(Callback):
    """Records the number of threads during training."""

    def __init__(self):
        self.seen = []

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(torch.get_num_threads())


def dask(monkeypatch, n_threads, nanny):
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=n_threads), nanny=nanny)
    module = SimpleNamespace(get_worker=lambda: worker)
    monkeypatch.setitem(_workers.sys.modules, "distributed", module)


class TestThreads:
    def test_of_a_dask_worker(self, iris, monkeypatch):
        dask(monkeypatch, 3, None)
        model = quick(callbacks=[Threads()], max_epochs=1).fit(*iris)
        assert dict(model.callbacks_)["Threads"].seen == [3]
        assert torch.get_num_threads() == 1

    def test_what_is_configured_counts(self, monkeypatch):
        """Dask's nanny has set OMP_NUM_THREADS for torch."""
        with threads(2):
            dask(monkeypatch, 1, "tcp://nanny")
            assert threads_given() == 2
            dask(monkeypatch, 4, "tcp://nanny")
            assert threads_given() == 4

    def test_elsewhere_as_torch_does(self):
        assert threads_given() is None

    def test_are_restored(self):
        def fail():
            with threads(2):
                assert torch.get_num_threads() == 2
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert torch.get_num_threads() == 1

    def test_forked_from_a_process_that_has_used_several(self, digits):
        """OpenMP's threads do not exist after a fork, and torch would wait forever."""
        X, y = digits[0].reshape(-1, 64) / 16, digits[1]
        model = quick(max_epochs=1)
        with threads(2):
            expected = model.fit(X, y).predict(X)

            def again():
                return (model.fit(X, y).predict(X) == expected).mean()

            ((one, two),) = in_processes(1, again)
            assert torch.get_num_threads() == 2
        assert one == two > 0.99


def test_read_only_memory_is_shared(tmp_path):
    """As joblib maps it into each worker."""
    from skbsd._large import shared

    np.save(tmp_path / "X.npy", np.ones((5, 4), np.float32))
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    tensor = shared(X)
    assert tensor.data_ptr() == X.ctypes.data
    assert torch.equal(tensor, torch.ones(5, 4))
