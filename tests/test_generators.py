"""A fit borrows torch's global generators; only one thread can at a time."""

import multiprocessing
import os
import threading

import pytest
from helpers import quick, same_weights
from skorch.callbacks import Callback


def fit_in_child(iris, answers):
    answers.put(quick().fit(*iris).n_iter_)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_while_a_thread_is_fitting(iris):
    began, go_on = threading.Event(), threading.Event()

    class Waits(Callback):
        def on_epoch_begin(self, net, **kwargs):
            began.set()
            assert go_on.wait(60)

    model = quick(callbacks=[Waits])
    thread = threading.Thread(target=model.fit, args=iris)
    thread.start()
    try:
        assert began.wait(60)
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=fit_in_child, args=(iris, answers))
        child.start()
        child.join(30)
        hangs = child.is_alive()
        child.kill()
        assert not hangs
        assert answers.get(timeout=5) == 3
    finally:
        go_on.set()
        thread.join()
    assert same_weights(model, quick().fit(*iris))
