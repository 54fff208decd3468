"""Unusable X raises an error: tables, columns, images."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quick

NAN, INF = float("nan"), float("inf")
DAYS = np.datetime64("2020-01-01") + np.arange(300).reshape(150, 2)
DURATIONS = DAYS - DAYS[0]


def with_value(X, value):
    X = X.copy()
    X[3, 1] = value
    return X


@pytest.mark.parametrize("value", [NAN, INF, -INF])
class TestValuesOfX:
    def test_fit_and_predict(self, iris, value):
        X, y = iris
        model = quick()
        with pytest.raises(ValueError, match="NaN" if value != value else "infinity"):
            model.fit(with_value(X, value), y)
        model.fit(X, y)
        for method in (model.predict, model.predict_proba, model.decision_function):
            with pytest.raises(ValueError, match="contains"):
                method(with_value(X, value))

    def test_advice_about_missing_values(self, iris, value):
        X, y = iris
        advice = "imputer" if value != value else "infinity"
        with pytest.raises(ValueError, match=advice):
            quick().fit(with_value(X, value), y)

    def test_tensor(self, iris, value):
        X, y = iris
        with pytest.raises(ValueError, match="Input X contains"):
            quick().fit(torch.tensor(with_value(X, value)), y)


class TestX:
    def test_texts(self):
        texts = ["the cat sat", "a dog ran"] * 20
        with pytest.raises(ValueError, match=r"'the cat sat'.*TfidfVectorizer"):
            quick().fit(texts, [0, 1] * 20)

    def test_too_large_for_float32(self, iris):
        X, y = iris
        with pytest.raises(ValueError, match=r"1e\+60, too large for .*StandardScaler"):
            quick().fit(with_value(X, 1e60), y)
        model = quick().fit(X, y)
        with pytest.raises(ValueError, match="too large"):
            model.predict(with_value(X, 1e60))

    def test_empty(self, iris):
        X, y = iris
        with pytest.raises(ValueError, match=r"0 sample\(s\)"):
            quick().fit(X[:0], y[:0])
        with pytest.raises(ValueError, match=r"0 feature\(s\)"):
            quick().fit(X[:, :0], y)
        with pytest.raises(ValueError, match="0 samples"):
            quick().fit(torch.zeros(0, 4), y[:0])
        with pytest.raises(ValueError, match=r"0 sample\(s\)"):
            quick().fit(X, y).predict(X[:0])

    def test_object_columns(self, iris):
        X, y = iris
        frame = pd.DataFrame(X, columns=list("abcd")).assign(e="red", f="blue")
        with pytest.raises(ValueError, match=r"'e' .*'f' .*OneHotEncoder"):
            quick().fit(frame, y)
        with pytest.raises(ValueError, match="could not convert string to float"):
            quick().fit(np.full((150, 2), "red", dtype=object), y)

    @pytest.mark.parametrize("dtype", ["object", "category"])
    def test_columns_some_of_which_hold_numbers(self, iris, dtype):
        frame = pd.DataFrame(iris[0], columns=list("abcd"), dtype=object)
        frame["e"] = pd.Series(["red", 1, 2] * 50, dtype=dtype)
        message = rf"not numeric: 'e' \({dtype}\)\. Encode"
        with pytest.raises(ValueError, match=message):
            quick().fit(frame, iris[1])
        frame["e"] = pd.Series([1j, 2, 3] * 50)
        with pytest.raises(
            ValueError, match=r"not numeric: 'e' \(complex128\)\. Encode"
        ):
            quick().fit(frame, iris[1])

    @pytest.mark.parametrize("dtype", ["object", "category"])
    @pytest.mark.parametrize("missing", [None, NAN, pd.NA, pd.NaT])
    def test_missing_values_in_columns(self, iris, dtype, missing):
        numbers = pd.DataFrame(iris[0], columns=list("abcd"))
        model = quick().fit(numbers, iris[1])
        frame = numbers.assign(b=pd.Series([missing, 1.0, 2.0] * 50, dtype=dtype))
        for method in (quick().fit, model.score):
            with pytest.raises(ValueError, match=r"Input X contains NaN.*\s.*imputer"):
                method(frame, iris[1])

    def test_infinity_in_objects(self, iris):
        frame = pd.DataFrame(with_value(iris[0], INF), dtype=object)
        for X in (frame, frame.to_numpy(), [list(map(Decimal, x)) for x in iris[0]]):
            if isinstance(X, list):
                X[3][1] = Decimal(INF)
            with pytest.raises(ValueError, match="Input X contains infinity"):
                quick().fit(X, iris[1])

    @pytest.mark.parametrize(
        ("X", "dtype"),
        [
            (DAYS, r"datetime64\[D\]"),
            (DURATIONS, r"timedelta64\[D\]"),
            (DAYS[:, :, None, None], r"datetime64\[D\]"),
            (list(DAYS), r"datetime64\[D\]"),
            (DAYS.astype(object), "object"),
            (DAYS.tolist(), "object"),
            (DURATIONS.tolist(), "object"),
            ([[1.5, day] for day in DAYS[:, 0]], "object"),
            (np.array([[1.5, day] for day in DAYS[:, 0]], dtype=object), "object"),
            (pd.DataFrame(DAYS).map(pd.Timestamp).to_numpy(object), "object"),
        ],
    )
    def test_times(self, iris, X, dtype):
        message = rf"X holds dates, times or durations \(dtype {dtype}\);.*Extract"
        with pytest.raises(ValueError, match=message):
            quick().fit(X, iris[1])
        model = quick().fit(iris[0][:, :2], iris[1])
        with pytest.raises(ValueError, match="dates, times or durations"):
            model.predict(X)

    @pytest.mark.parametrize(
        "column",
        [
            pd.Series(DAYS[:, 0]),
            pd.Series(DAYS[:, 0]).dt.tz_localize("UTC"),
            pd.Series(DURATIONS[:, 0]),
            pd.Series(DAYS[:, 0]).astype("category"),
            pd.Series(DAYS[:, 0].tolist(), dtype=object),
            pd.Series([np.timedelta64(3, "s"), None, 1] * 50, dtype=object),
            pd.Series(DAYS[:, 0]).dt.to_period("M"),
        ],
        ids=lambda column: str(column.dtype),
    )
    def test_columns_of_times(self, iris, column):
        numbers = pd.DataFrame(iris[0], columns=list("abcd"))
        message = re.escape(f"('when' ({column.dtype}), 'then' ({column.dtype}))")
        frame = numbers.assign(when=column, then=column, e="red")
        with pytest.raises(ValueError, match=rf"columns of dates.*{message}.*\.dt"):
            quick().fit(frame, iris[1])
        with pytest.raises(ValueError, match=r"columns of dates.*'when'"):
            quick().fit(frame[["when"]], iris[1])

    def test_complex(self, iris):
        with pytest.raises(ValueError, match="Complex data not supported"):
            quick().fit(iris[0] * 1j, iris[1])
        with pytest.raises(ValueError, match="Complex data not supported"):
            quick().fit(torch.tensor(iris[0] * 1j), iris[1])

    @pytest.mark.parametrize("shape", [(150, 2, 2), (150, 1, 2, 2, 1)])
    def test_dimensions(self, iris, shape):
        X = np.zeros(shape)
        with pytest.raises(ValueError, match=rf"{len(shape)} dimensions.*X\[:, None\]"):
            quick().fit(X, iris[1])
        with pytest.raises(ValueError, match="dimensions"):
            quick().fit(torch.tensor(X), iris[1])

    def test_one_dimension(self, iris):
        for X in (iris[0][:, 0], torch.tensor(iris[0][:, 0])):
            with pytest.raises(ValueError, match="Reshape your data"):
                quick().fit(X, iris[1])

    @pytest.mark.parametrize(
        "shape",
        [
            (32, 32, 3),
            (8, 100, 1),
            (32, 32, 2),
            (32, 32, 5),
            (64, 64, 13),
            (64, 64, 32),
            (48, 64, 5),
            (64, 48, 8),
        ],
    )
    def test_channels_last(self, shape):
        X = np.random.default_rng(0).random((10, *shape), np.float32)
        y = np.arange(10) % 2
        message = rf"\(10, {str(shape)[1:-1]}\).*np.moveaxis.*image_shape=\({shape[0]}"
        for given in (X, torch.tensor(X)):
            with pytest.raises(ValueError, match=message):
                quick().fit(given, y)
        model = quick(max_epochs=1).fit(np.moveaxis(X, -1, 1), y)
        with pytest.raises(ValueError, match=message):
            model.predict(X)

    def test_image_shape(self, digits):
        X, y = (a[:50] for a in digits)
        flat = X.reshape(50, -1)
        with pytest.raises(ValueError, match=r"64 features.*has 192 values"):
            quick(image_shape=(3, 8, 8)).fit(flat, y)
        with pytest.raises(
            ValueError, match=r"\(1, 8, 8\).*image_shape is \(1, 4, 16\)"
        ):
            quick(image_shape=(1, 4, 16)).fit(X, y)

    @pytest.mark.parametrize(
        "augment", [torch.Tensor.float, lambda x: x[:5], lambda x: None]
    )
    def test_augmentation_that_changes_type_or_shape(self, uint8_digits, augment):
        X, y = (a[:50] for a in uint8_digits)
        with pytest.raises(ValueError, match=r"augmentation=.* turned a batch of"):
            quick(augmentation=augment).fit(X, y)

    def test_augmentation_of_a_table(self, iris):
        with pytest.raises(ValueError, match=r"'flip-crop' needs images.*\(150, 4\)"):
            quick(augmentation="flip-crop").fit(*iris)

    def test_lengths_differ(self, iris):
        X, y = iris
        for given in (X, torch.tensor(X)):
            with pytest.raises(ValueError, match=r"inconsistent.*\[150, 149\]"):
                quick().fit(given, y[:-1])
