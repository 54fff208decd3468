import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skbsd import _files
from skbsd._files import FileFormatError

HEADER = {
    "numbers": [1, 2**80, 0.1, float("inf"), -float("inf"), None, True],
    "tuple": (1, (2.5, "x")),
    "bytes": b"\x00\xff",
    "keys": {1: "int", "$": "tag", ("a", 2): "tuple"},
    "$": {"$": "tag"},
    "scalars": [np.float32(0.1), np.bool_(True), np.str_("é"), np.int8(-1)],
    "device": torch.device("cuda:1"),
    "dtype": torch.bfloat16,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.skbsd"


def test_plain_data_come_back(path):
    _files.write_atomically(path, {}, HEADER)
    header, _ = _files.read(path)
    assert header == HEADER
    kinds = [type(value) for value in header["scalars"]]
    assert kinds == [type(value) for value in HEADER["scalars"]]
    assert type(header["numbers"][0]) is int
    assert type(header["numbers"][-1]) is bool


def test_nan_comes_back(path):
    _files.write_atomically(path, {}, {"nan": float("nan")})
    assert np.isnan(_files.read(path)[0]["nan"])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.array(["a", "long"]),
        np.array([b"a", b"bc"]),
        np.array(["a", 1, True], dtype=object),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.array([1, 2], dtype="m8[25us]"),
        np.array([1.5, np.inf], dtype=">f8"),
        np.zeros((0, 2), dtype=bool),
    ],
)
def test_arrays_come_back(path, array):
    _files.write_atomically(path, {}, {"array": array})
    found = _files.read(path)[0]["array"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()
    assert found.flags.writeable


def test_tensors_of_every_type_and_stride_come_back(path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {
        "whole": whole,
        "view": whole[:, 1],
        "transposed": whole.T,
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "counts": torch.tensor([1, -2], dtype=torch.int32),
        "flags": torch.tensor([True, False, True]),
    }
    _files.write_atomically(path, tensors, {})
    _, found = _files.read(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_tensors_within_the_header_come_back_in_their_places(path):
    header = {
        "state": {0: {"step": torch.tensor(3.0), "lr": 0.1}},
        "x": [torch.ones(2)],
    }
    _files.write_atomically(path, {"w": torch.zeros(1)}, header)
    found, tensors = _files.read(path)
    assert tensors.keys() == {"w"}
    assert found["state"][0]["step"] == 3
    assert found["state"][0]["lr"] == 0.1
    assert torch.equal(found["x"][0], torch.ones(2))


def test_what_was_read_does_not_hang_on_the_file(path):
    _files.write_atomically(path, {"x": torch.ones(10_000)}, {})
    _, tensors = _files.read(path)
    with open(path, "r+b") as file:
        file.truncate(0)
    assert tensors["x"].sum() == 10_000


@pytest.mark.parametrize("header", [{"x": print}, {"x": {1, 2}}, {"x": object()}])
def test_what_is_not_plain_is_refused_and_the_file_stays(path, header):
    _files.write_atomically(path, {}, {"x": 1})
    with pytest.raises(TypeError, match="not plain data"):
        _files.write_atomically(path, {}, header)
    assert _files.read(path)[0] == {"x": 1}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_last_file(path, name, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    _files.write_atomically(path, {}, {"x": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(OSError, match="No space left"):
            _files.write_atomically(path, {}, {"x": 2})
    assert _files.read(path)[0] == {"x": 1}
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        _files.write_atomically(tmp_path / "none" / "file", {}, {})


def test_a_file_that_is_missing(path):
    with pytest.raises(FileNotFoundError, match=r"file\.skbsd"):
        _files.read(path)


def test_files_are_as_readable_as_others(path):
    _files.write_atomically(path, {}, {})
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("length", [0, 4, 8, 60, -1])
def test_a_file_that_was_cut_short(path, length):
    _files.write_atomically(path, {"x": torch.ones(100)}, {})
    data = path.read_bytes()
    path.write_bytes(data[:length])
    with pytest.raises(FileFormatError, match=r"file\.skbsd .*truncated"):
        _files.read(path)


def with_metadata(path, metadata):
    save_file({"x": torch.ones(2)}, path, metadata)
    return path


def test_files_of_others(path):
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        _files.read(path)
    with pytest.raises(FileFormatError, match="skbsd did not write"):
        _files.read(with_metadata(path, None))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "damaged header"),
        ("[]", "damaged header"),
        ("[" * 100_000, "damaged header"),
        ('{"format": "1"}', "damaged header"),
        ('{"format": 1}', "damaged header"),
        ('{"format": 1, "header": []}', "it is a list"),
        ('{"format": 99}', r"has format 99.*reads format 1\. Update skbsd"),
    ],
)
def test_headers_that_cannot_be_read(path, header, message):
    with pytest.raises(FileFormatError, match=message):
        _files.read(with_metadata(path, {"skbsd": header}))


@pytest.mark.parametrize(
    "value",
    [
        {"$": "os.system", "value": "echo"},
        {"$": "dtype", "value": "load"},
        {"$": "device", "value": "nonsense"},
        {"$": "float", "value": "1e999"},
        {"$": "dict", "value": [[[1], 2]]},
        {"$": "array", "value": {"dtype": "|O", "shape": [1], "data": ""}},
        {"$": "array", "value": {"dtype": "<f8", "shape": [10**12], "data": ""}},
        {"$": "array", "value": {"dtype": "<U9999999999", "shape": [1], "data": ""}},
        {"$": "array", "value": {"dtype": "<f8", "shape": [-1], "data": "!"}},
        {"$": "tuple"},
        {"$": "tensor", "value": "none"},
    ],
)
def test_values_that_no_header_has(path, value):
    header = json.dumps({"format": 1, "header": {"x": value}})
    with pytest.raises(FileFormatError, match="damaged header"):
        _files.read(with_metadata(path, {"skbsd": header}))
