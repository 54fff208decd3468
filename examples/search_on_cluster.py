"""Search on several workers, on this computer or on a cluster.

Dask's workers run successive halving over 16 settings. Each round continues the
training of the round before. A search that was stopped continues when it is started
again.

    pip install ".[dask]"
    python examples/search_on_cluster.py

This starts a worker for each core of this computer. On a cluster, start a scheduler and
workers, one for each GPU if there are any. Then name the scheduler and a folder that
all workers can read and write:

    dask scheduler
    dask worker tcp://scheduler:8786 --nthreads 1 --resources "GPU=1"
    python examples/search_on_cluster.py --scheduler tcp://scheduler:8786 \
        --gpus --folder /shared/search
"""

import argparse
import tempfile
import time
from contextlib import ExitStack

import joblib
from sklearn.datasets import load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV, train_test_split

from skbsd import BSDClassifier

try:
    from dask.distributed import Client, LocalCluster
except ImportError:
    Client = None

LONGEST = 32  # epochs of the last round


def use_workers(stack: ExitStack, scheduler: str | None, gpus: bool) -> None:
    """Have joblib send fits to Dask's workers until the stack is closed."""
    if Client is None:
        print(
            'Dask is not installed (pip install "dask[distributed]"): using processes.'
        )
        stack.enter_context(joblib.parallel_config(backend="loky", n_jobs=-1))
        return
    resources = {"GPU": 1} if gpus else {}
    cluster = scheduler
    if scheduler is None:
        cores = joblib.cpu_count()
        cluster = LocalCluster(
            n_workers=cores, threads_per_worker=1, resources=resources
        )
        stack.enter_context(cluster)
    client = stack.enter_context(Client(cluster))
    client.wait_for_workers(1)
    print(f"{len(client.ncores())} workers at {client.scheduler.address}")
    # Each fit uses the GPU of its worker. A fit whose worker dies is tried again.
    stack.enter_context(
        joblib.parallel_config(backend="dask", resources=resources, retries=3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scheduler", help="address of a running scheduler")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each fit")
    parser.add_argument("--folder", help="where checkpoints of the search are kept")
    args = parser.parse_args()

    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16, y, random_state=0, stratify=y
    )
    with ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        use_workers(stack, args.scheduler, args.gpus)
        model = BSDClassifier(
            # All rounds follow the schedule of the longest training.
            schedule_epochs=LONGEST,
            calibration=None,
            checkpoint=folder,
            random_state=0,
        )
        search = HalvingGridSearchCV(
            model,
            {
                "lr": [0.001, 0.003, 0.01, 0.03],
                "prior_strength": [20.0, 60.0, 200.0, float("inf")],
            },
            resource="max_epochs",
            min_resources=2,
            max_resources=LONGEST,
            factor=2,
            scoring="neg_log_loss",
            random_state=0,
        )
        start = time.perf_counter()
        search.fit(X_train, y_train)
        seconds = time.perf_counter() - start
    print(f"{len(search.cv_results_['params'])} validations in {seconds:.0f} s")
    rounds = zip(search.n_candidates_, search.n_resources_, strict=True)
    print("rounds:", ", ".join(f"{n} for {epochs} epochs" for n, epochs in rounds))
    print("best:", search.best_params_)
    found = search.best_estimator_.score(X_test, y_test)
    print(f"accuracy on held-out test samples: {found:.1%}")


if __name__ == "__main__":
    main()
