"""The stores of beliefs as users choose them: compact ones, and in files."""

import copy
import gc
import os
import pickle
import re

import numpy as np
import pytest
import torch
from helpers import quick, same_weights

from skbsd import BSDClassifier, _disk, report
from skbsd.label_noise import find_label_issues
from skbsd.posterior import CompactPosterior, DirichletPosterior, UpdateRule

FORMS = ["float32", "float16", "compact-4"]


@pytest.fixture(scope="module")
def table():
    """Return data of 30 classes, one of which is rare."""
    rng = np.random.default_rng(0)
    y = np.r_[np.arange(29).repeat(20), 29]
    centres = rng.normal(size=(30, 20))
    X = (centres[y] + 0.4 * rng.normal(size=(len(y), 20))).astype(np.float32)
    return X, y


def states(model):
    return model.posterior_.state_dict()


def assert_same_beliefs(one, other):
    mine, theirs = states(one), states(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


class TestCompact:
    def test_is_chosen_by_name(self, table):
        X, y = table
        for name, n_kept in (("compact-7", 7), ("compact-29", 29)):
            model = quick(posterior_dtype=name).fit(X, y)
            assert isinstance(model.posterior_, CompactPosterior)
            assert model.posterior_.n_kept == n_kept
            assert model.posterior_.dtype == torch.float16
            assert f"n_kept={n_kept}, " in repr(model.posterior_)
        # As many as there are, or more: a dense row is no larger.
        for name in ("compact", "compact-30"):
            model = quick(posterior_dtype=name).fit(X, y)
            assert isinstance(model.posterior_, DirichletPosterior)
            assert same_weights(model, quick().fit(X, y))

    @pytest.mark.parametrize("value", ["compact-1", "compact-", "compact-4.5", "half"])
    def test_other_names(self, table, value):
        with pytest.raises(ValueError, match=f"such as 'compact-64'; got '{value}'"):
            quick(posterior_dtype=value).fit(*table)

    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"prior_strength": 100.0, "discount": 0.9},
            {"prior_strength": "noisy"},
            {"prior_strength": np.inf},
            {"prior_strength": 5e3},
            {"batch_size": -1},  # in double precision
            {"class_weight": "balanced"},
            {
                "optimizer": torch.optim.LBFGS,
                "max_epochs": 3,
                "lr": 0.1,
                "lr_schedule": "constant",
            },
            {"averaging": "ema"},
        ],
        ids=str,
    )
    def test_trains_as_dense(self, table, kwargs):
        X, y = table
        kwargs = {"max_epochs": 8} | kwargs
        model = quick(posterior_dtype="compact-12", **kwargs).fit(X, y)
        dense = quick(**kwargs).fit(X, y)
        difference = np.abs(model.predict_proba(X) - dense.predict_proba(X)).mean()
        assert difference < 2e-3
        assert set(model.posterior_.visits.tolist()) == {kwargs["max_epochs"]}
        error = (model.posterior_.mean() - dense.posterior_.mean()).abs().sum(1)
        assert error.mean() < 0.03

    def test_weights_of_zero_and_repeated_fits(self, table):
        X, y = table
        weight = np.arange(len(y)) % 3 > 0
        model = quick(posterior_dtype="compact-4").fit(X, y, sample_weight=weight)
        assert np.array_equal(model.posterior_.visits > 0, weight)
        assert not model.posterior_.evidence()[~weight].any()
        before = model.posterior_
        model.partial_fit(X, y, sample_weight=weight)
        assert model.posterior_ is before
        assert set(before.visits.tolist()) == {0, 6}
        assert not torch.equal(model.fit(X, y).posterior_.visits, before.visits)

    def test_two_views(self, digits):
        X, y = digits[0][:300] / 16, digits[1][:300]
        models = [
            quick(contrastive=0.2, posterior_dtype=form).fit(X, y)
            for form in ("compact-6", "float32")
        ]
        found, expected = (model.posterior_.mean() for model in models)
        assert (found - expected).abs().sum(1).mean() < 0.05

    def test_tail_mass_is_in_the_history_and_the_report(self, table, tmp_path):
        X, y = table
        model = quick(posterior_dtype="compact-4").fit(X, y)
        reported = model.history_[:, "tail_mass"]
        assert reported[-1] == pytest.approx(model.posterior_.tail_mass().mean().item())
        kept = model.posterior_.kept_classes()
        mean = model.posterior_.mean()
        tail = 1 - mean.gather(1, kept).sum(1)
        torch.testing.assert_close(
            model.posterior_.tail_mass(), tail, rtol=0, atol=1e-5
        )
        page = report(model, X, y, path=tmp_path / "report.html")
        assert "Tail mass of the beliefs, last epoch" in page.read_text()
        assert "tail_mass" not in quick().fit(X, y).history_[-1]

    def test_wrong_labels_are_found(self, table):
        X, y = table
        labels = y.copy()
        wrong = np.arange(0, 580, 23)
        labels[wrong] = (labels[wrong] + 7) % 29
        model = quick(
            prior_strength="noisy", max_epochs=15, posterior_dtype="compact-4"
        ).fit(X, labels)
        issues = find_label_issues(model, threshold=0.3)
        found = np.isin(wrong, issues["row"][: len(wrong)])
        assert found.mean() > 0.9
        suggested = dict(zip(issues["row"], issues["suggested_label"], strict=True))
        right = [suggested[row] == y[row] for row in wrong if row in suggested]
        assert np.mean(right) > 0.9

    def test_pictures(self, table, plt):
        from skbsd.display import PosteriorDisplay

        X, y = table
        model = quick(posterior_dtype="compact-4").fit(X, y)
        PosteriorDisplay.from_estimator(model, rows=[3, 4])

    def test_calibration_by_folds(self, table):
        X, y = table
        model = BSDClassifier(
            max_epochs=6, posterior_dtype="compact-8", random_state=0
        ).fit(X, y)
        assert model.calibration_.method == "cross-fit"
        assert isinstance(model.posterior_, CompactPosterior)
        assert model.score(X, y) > 0.5

    @pytest.mark.parametrize("form", ["compact-8", "compact-40", "float32"])
    def test_nothing_as_large_as_dense_beliefs_is_left(self, table, form):
        X, y = table
        model = quick(posterior_dtype=form, calibration="hold-out").fit(X, y)
        assert model.calibration_.n_samples > 0
        is_compact = isinstance(model.posterior_, CompactPosterior)
        assert (model.out_of_fold_proba_ is None) == is_compact == (form == "compact-8")
        if is_compact:
            find_label_issues(model)  # by the evidence alone


class TestInFiles:
    @pytest.mark.parametrize("form", FORMS)
    def test_are_the_same_beliefs(self, table, tmp_path, form):
        X, y = table
        model = quick(posterior_dtype=form, posterior_folder=tmp_path).fit(X, y)
        assert same_weights(model, quick(posterior_dtype=form).fit(X, y))
        other = quick(posterior_dtype=form).fit(X, y)
        assert_same_beliefs(model, other)
        assert torch.equal(model.posterior_.label_mass(), other.posterior_.label_mass())
        for one in (model, other):
            one.partial_fit(X, y)
        assert_same_beliefs(model, other)

    @pytest.mark.skipif(os.name == "nt", reason="a file in use has a name there")
    def test_nothing_is_left_in_the_folder(self, table, tmp_path):
        folder = tmp_path / "made" / "when needed"
        model = quick(posterior_folder=str(folder)).fit(*table)
        assert folder.is_dir()
        assert not list(folder.iterdir())
        assert model.posterior_.mean().isfinite().all()

    @pytest.mark.skipif(
        not os.path.exists("/proc/self/maps"), reason="nothing tells of mappings here"
    )
    def test_rows_are_mapped_until_they_are_released(self, table, tmp_path):
        def mapped():
            with open("/proc/self/maps") as maps:
                lines = [line for line in maps if str(tmp_path) in line]
            ends = [re.match(r"(\w+)-(\w+)", line).groups() for line in lines]
            return sum(int(end, 16) - int(start, 16) for start, end in ends)

        model = quick(posterior_folder=tmp_path).fit(*table)
        assert mapped() >= model.posterior_._alpha.nbytes
        del model
        gc.collect()  # an estimator is part of its own callbacks
        assert mapped() == 0

    def test_a_failed_call_leaves_them_as_they_were(self, table, tmp_path):
        X, y = table
        model = quick(posterior_folder=tmp_path).fit(X, y)
        before = model.posterior_.mean()

        def interrupt(*_):
            raise KeyboardInterrupt

        model.module_.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(X, y)
        assert torch.equal(model.posterior_.mean(), before)

    @pytest.mark.parametrize("form", FORMS)
    def test_copies(self, table, tmp_path, form):
        X, y = table
        model = quick(posterior_dtype=form, posterior_folder=tmp_path).fit(X, y)
        pickled = pickle.loads(pickle.dumps(model))
        copied = copy.deepcopy(model)
        assert pickled.posterior_._folder is None  # of another machine, maybe
        assert copied.posterior_._folder == tmp_path
        expected = copy.deepcopy(states(model))
        for other in (pickled, copied):
            assert_same_beliefs(other, model)
            other.partial_fit(X, y)
        assert_same_beliefs(pickled, copied)
        for name, tensor in states(model).items():
            assert torch.equal(tensor, expected[name])

    def test_save_and_load(self, table, tmp_path):
        X, y = table
        model = quick(posterior_folder=tmp_path / "beliefs").fit(X, y)
        model.save(tmp_path / "model.skbsd", posterior=True)
        loaded = BSDClassifier.load(tmp_path / "model.skbsd")
        assert loaded.posterior_folder is None
        assert_same_beliefs(loaded, model)

    def test_checkpoint(self, table, tmp_path):
        """A call that continues may have another folder for its beliefs."""
        X, y = table
        first = quick(checkpoint=tmp_path, posterior_folder=tmp_path / "a").fit(X, y)
        again = quick(checkpoint=tmp_path, posterior_folder=tmp_path / "b").fit(X, y)
        assert_same_beliefs(first, again)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1

    @pytest.mark.parametrize("kind", [DirichletPosterior, CompactPosterior])
    def test_rows_may_be_chosen_by_a_list_or_a_mask(self, kind):
        posterior = kind(torch.arange(4), 50)
        posterior.update(torch.randn(4, 50), torch.arange(4))
        mask = np.array([False, True, True, False])
        assert torch.equal(posterior.mean(mask), posterior.mean()[1:3])
        assert torch.equal(posterior.mean(mask), posterior.mean([1, 2]))
        assert posterior.evidence([]).shape == (0, 50)

    @pytest.mark.parametrize("kind", [DirichletPosterior, CompactPosterior])
    def test_rows_go_to_the_logits_and_back(self, tmp_path, kind):
        """As on a GPU, here by the CPU's own arithmetic."""
        labels = torch.arange(20) % 3 + 40
        one, other = (
            kind(labels, 50, folder=folder, dtype=torch.float32)
            for folder in (None, tmp_path)
        )
        rule = UpdateRule(weight=2.0)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(9, 50, generator=generator)
            index = torch.randperm(20, generator=generator)[:9]
            weight = torch.rand(9, generator=generator)
            expected = one.update(logits, index, weight, rule)
            found = other._take_in_elsewhere(
                logits, index, weight, rule, with_rule=True
            )
            torch.testing.assert_close(found, expected)
        assert torch.equal(other.visits, one.visits)
        torch.testing.assert_close(other.mean(), one.mean())

    def test_rows_of_the_same_type_are_loaded_without_a_copy(self):
        posterior = DirichletPosterior(torch.zeros(3).long(), 4)
        alpha = posterior.state_dict()["alpha"]
        assert posterior._fitting("alpha", alpha) is alpha
        assert posterior._fitting("alpha", alpha.double()) is not alpha

    def test_stay_on_the_cpu(self, tmp_path):
        posterior = DirichletPosterior(torch.zeros(3).long(), 4, folder=tmp_path)
        assert posterior.to("meta") is posterior
        assert posterior.device.type == "cpu"

    def test_no_room(self, monkeypatch, tmp_path):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_disk.os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match=r"beliefs take 400 bytes, .*do not fit"):
            _disk.allocate((10, 10), torch.float32, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_folder_that_is_none(self, table, tmp_path):
        with pytest.raises(ValueError, match=r"posterior_folder must name a folder"):
            quick(posterior_folder="").fit(*table)
        file = tmp_path / "file"
        file.write_text("")
        for folder in (file, file / "below"):
            message = rf"'{re.escape(str(folder))}' is not a writable folder for"
            with pytest.raises(OSError, match=message):
                quick(posterior_folder=folder).fit(*table)

    def test_no_samples(self, tmp_path):
        assert _disk.allocate((0, 5), torch.float32, tmp_path).shape == (0, 5)
