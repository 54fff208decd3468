"""Searches on several workers: the results of serial ones, and workers that die.

joblib's own (loky) are always there. Dask and Ray are optional:
`pip install "skbsd[dask,ray]"`.
"""

import builtins
import os
import signal
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch
from helpers import quick
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.testing import assert_array_equal
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate
from skorch.callbacks import Callback

MODEL = {"device": "cpu", "lr_schedule": "constant"}
RATES = {"lr": [0.003, 0.01, 0.03, 0.1]}
N_EPOCHS = 4


def grid(iris, **kwargs):
    """Search with a calibration, which trains several networks in each fit."""
    model = quick(calibration="cross-fit", max_epochs=2, **MODEL, **kwargs)
    rates = {"lr": [0.01, "auto"]}
    search = GridSearchCV(model, rates, scoring="neg_log_loss", cv=2)
    return search.fit(*iris).cv_results_


def halving(iris, **kwargs):
    """Search in rounds of 2 and 4 epochs."""
    search = HalvingGridSearchCV(
        quick(**MODEL, **kwargs),
        RATES,
        resource="max_epochs",
        min_resources=2,
        max_resources=N_EPOCHS,
        factor=2,
        scoring="neg_log_loss",
        cv=2,
        random_state=0,
    )
    return search.fit(*iris).cv_results_


def folds(iris, **kwargs):
    """Validate four times."""
    return cross_validate(quick(**MODEL, **kwargs), *iris, scoring="neg_log_loss", cv=4)


SEARCHES = {"grid": grid, "halving": halving, "folds": folds}


@pytest.fixture(scope="module")
def serial(iris):
    """Return the results of all searches in this process."""
    return {name: search(iris) for name, search in SEARCHES.items()}


def assert_as_serially(iris, serial, **kwargs):
    for name, search in SEARCHES.items():
        found, expected = search(iris, **kwargs), serial[name]
        scores = [key for key in expected if key.endswith(("_score", "n_resources"))]
        assert scores
        for key in scores:
            assert_array_equal(found[key], expected[key], err_msg=f"{name}, {key}")


class DiesOnce(Callback):
    """Logs each epoch to a file, and once ends its process in the third epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_epoch_end(self, net, **kwargs):
        with open(Path(self.folder, "epochs"), "a") as file:
            file.write(f"{net.lr} {len(net.history)}\n")
        died = Path(self.folder, "died")
        if len(net.history) == 3 and not died.exists():
            died.touch()
            time.sleep(0.2)  # the other worker has begun by now
            os.kill(os.getpid(), signal.SIGKILL)


def dying(iris, folder):
    """Search with a worker that dies once."""
    model = quick(
        max_epochs=N_EPOCHS,
        callbacks=[DiesOnce(str(folder))],
        checkpoint=folder / "runs",
        **MODEL,
    )
    search = GridSearchCV(
        model, RATES, scoring="neg_log_loss", cv=2, refit=False, error_score="raise"
    )
    return search.fit(*iris).cv_results_


def assert_went_on(iris, folder, found, *, n_workers):
    """In each worker, only the interrupted epoch was run twice."""
    assert (folder / "died").exists()
    n_run = len((folder / "epochs").read_text().splitlines())
    n_epochs = len(RATES["lr"]) * 2 * N_EPOCHS
    assert n_epochs < n_run <= n_epochs + n_workers
    alone = quick(max_epochs=N_EPOCHS, **MODEL)
    expected = GridSearchCV(alone, RATES, scoring="neg_log_loss", cv=2).fit(*iris)
    for i in range(2):
        key = f"split{i}_test_score"
        assert_array_equal(found[key], expected.cv_results_[key])


def workers_threads(_):
    time.sleep(0.1)
    return os.getpid(), torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")


def look(n_tasks=8):
    """Return number of threads and visible GPUs by worker."""
    calls = (joblib.delayed(workers_threads)(i) for i in range(n_tasks))
    found = joblib.Parallel(n_jobs=2)(calls)
    return {pid: (threads, gpus) for pid, threads, gpus in found}


class TestLoky:
    @pytest.fixture(autouse=True)
    def backend(self):
        with joblib.parallel_config(backend="loky", n_jobs=2):
            yield

    def test_as_serially(self, iris, serial):
        assert_as_serially(iris, serial)

    def test_with_checkpoints(self, iris, serial, tmp_path):
        """Several workers write into one folder at the same time."""
        assert_as_serially(iris, serial, checkpoint=tmp_path)
        assert_as_serially(iris, serial, checkpoint=tmp_path)  # done before

    def test_a_worker_that_dies(self, iris, tmp_path):
        with pytest.raises(TerminatedWorkerError):
            dying(iris, tmp_path)
        assert_went_on(iris, tmp_path, dying(iris, tmp_path), n_workers=2)


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed", reason="needs skbsd[dask]")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            resources={"GPU": 1},
            dashboard_address=":0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


class TestDask:
    @pytest.fixture
    def backend(self, client):
        client.wait_for_workers(2, timeout=60)
        with joblib.parallel_config(backend="dask", resources={"GPU": 1}):
            yield

    def test_as_serially(self, iris, serial, backend):
        assert_as_serially(iris, serial)

    def test_a_worker_that_dies(self, iris, tmp_path, backend):
        """Dask runs its task again by itself."""
        assert_went_on(iris, tmp_path, dying(iris, tmp_path), n_workers=2)

    def test_threads(self, backend):
        found = look()
        assert len(found) == 2
        assert {threads for threads, _ in found.values()} == {1}

    def test_threads_of_this_process(self, iris, serial):
        distributed = pytest.importorskip("distributed", reason="needs skbsd[dask]")
        with (
            distributed.LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                processes=False,
                dashboard_address=":0",
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            assert_as_serially(iris, serial)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="needs skbsd[ray]")
    from joblib.pool import PicklingPool
    from ray.util.joblib import register_ray

    # Undo Ray's changes of this process, for later tests.
    bases, printing = PicklingPool.__bases__, builtins.print
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("CUDA_VISIBLE_DEVICES")
        register_ray()
        ray.init(
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )
        yield ray
        ray.shutdown()
    PicklingPool.__bases__, builtins.print = bases, printing


class TestRay:
    @pytest.fixture
    def backend(self, ray):
        tries = {"max_restarts": 2, "max_task_retries": 2}
        remote = {"num_gpus": 1, **tries}
        with joblib.parallel_config(backend="ray", n_jobs=2, ray_remote_args=remote):
            yield

    def test_as_serially(self, iris, serial, backend):
        assert_as_serially(iris, serial)

    def test_a_worker_that_dies(self, iris, tmp_path, backend):
        """Ray starts it again, and runs its task again."""
        assert_went_on(iris, tmp_path, dying(iris, tmp_path), n_workers=2)

    def test_a_gpu_and_threads_for_each(self, backend):
        assert sorted(look().values()) == [(1, "0"), (1, "1")]
