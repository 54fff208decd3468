"""Export of a fitted classifier to a file that runs without this library.

The exported program consists of the parts of the estimator: the preparation of a batch,
the network and the calibration. :func:`torch.export.export` traces its graph, which is
translated to ONNX if required.
"""

import copy
import errno
import inspect
import json
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from skorch.utils import is_dataset
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import _versions
from ._files import replacing
from ._preparation import Preparation
from ._structure import map_leaves

_CPU = torch.device("cpu")

_OUTPUT = "probabilities"

# An ONNX file is one protobuf message.
_LARGEST_ONNX = 2**31 - 1


def export(net: Any, path: str | os.PathLike[str], X: Any = None) -> None:
    """Export a classifier to a file; see :meth:`BSDClassifier.export`.

    Parameters
    ----------
    net : BSDClassifier
        The fitted classifier.
    path : path-like
        Its suffix determines the format.
    X : array-like, DataFrame, Tensor or Dataset, optional
        Samples that determine names, shapes and types of the inputs.
    """
    path = Path(path)
    write = _writer(path)
    check_is_fitted(net, "module_")
    if not net._has_classes():
        raise NotFittedError(
            f"this {type(net).__name__} has weights, but was never fitted, so its "
            "classes and inputs are unknown. Export an estimator that was fitted, or "
            "loaded by `load` or joblib."
        )
    net = _on_cpu(net)
    # Random numbers are drawn from copies of the generators.
    with net._generators.copy().borrowed(_CPU), torch.no_grad():
        batch = _example(net, X)
        served = _Served(net)
        served(batch)  # raises errors that are unrelated to the export
        program = _traced(served, batch)
        names = _names(batch, own=_parameters(net.module_))
        with replacing(path) as file:
            write(file, program, names, _facts(net, batch, names))


class _Served(nn.Module):
    """Computes probabilities from X like `predict_proba`.

    Parameters
    ----------
    net : BSDClassifier
        The classifier, on the CPU.
    """

    def __init__(self, net: Any):
        super().__init__()
        self.network = net.module_
        self._net = net
        self.eval()

    def forward(self, X: Any) -> Tensor:
        net = self._net
        # Cloned, as a network may work in place and must not change the caller's X.
        logits = net._logits(_each(X, torch.clone), net.prediction_views)
        return net._calibration()(logits).softmax(dim=1)


def _on_cpu(net: Any) -> Any:
    """Return a copy for the CPU that makes the same predictions."""
    copied = object.__new__(type(net))
    module = copy.deepcopy(net.module_).to(_CPU).eval().requires_grad_(False)
    if net._preparation.channels_last:
        module.to(memory_format=torch.contiguous_format)
    facts = net._preparation.changed(device="cpu", channels_last=False)
    facts = _with_int64(facts)
    vars(copied).update(vars(net))
    vars(copied).update(
        module_=module,
        device_=_CPU,
        precision="float32",
        _preparation=facts,
        _run=None,  # a callback may export during training
    )
    return copied


def _with_int64(facts: Preparation) -> Preparation:
    """Return facts of int64 in place of int32, which some ONNX operations lack."""
    if facts.several is not None:
        return facts.changed(several=map_leaves(_with_int64, facts.several))
    return facts.changed(integers="int64") if facts.integers == "int32" else facts


def _widened(x: Tensor) -> Tensor:
    return x.long() if x.dtype == torch.int32 else x


def _example(net: Any, X: Any) -> Any:
    """Return a batch of two samples, from X or made up, with dense rows.

    A single sample would not do, as torch treats dimensions of size one as constant.
    """
    facts = net._preparation
    if X is not None:
        batch = next(net._prediction_batches(X))
        if net.image_shape is not None and not is_dataset(X) and np.ndim(X) == 2:
            batch = batch.flatten(1)
        batch = _each(batch, _widened)
        return _each(batch, operator.itemgetter([0, -1]))
    if facts.is_dataset or facts.shape is None:
        raise ValueError(
            f"this {type(net).__name__} was fitted on a Dataset, so the inputs of its "
            "network are unknown; pass samples as for predict_proba: export(path, X)."
        )
    if net.image_shape is not None:
        facts = facts.changed(shape=(math.prod(facts.shape),))
    return _made_up(facts)


def _made_up(facts: Preparation) -> Any:
    """Return two samples of the inputs that a network was fitted on."""
    if facts.several is not None:
        return map_leaves(_made_up, facts.several)
    shape = (2, *(facts.shape or ()))
    if facts.is_uint8:
        return torch.randint(256, shape, dtype=torch.uint8)
    if facts.integers == "bool":  # such as a mask, of which some entry has to be true
        return torch.ones(shape, dtype=torch.bool)
    if facts.integers is not None:  # zero is an index into any embedding
        return torch.zeros(shape, dtype=torch.int64)
    return torch.randn(shape, dtype=facts.float_dtype)


def _each(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to each tensor of a batch, also within dicts and tuples."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: _each(part, function) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_each(part, function) for part in batch]
        return tuple(parts) if isinstance(batch, tuple) else parts
    raise TypeError(
        f"the inputs of the network include a {type(batch).__name__}; expected a "
        "Tensor, or a dict or tuple of Tensors."
    )


def _names(batch: Any, name: str = "X", own: Sequence[str] = ()) -> list[str]:
    """Return the names of the inputs, in order.

    Inputs in a dict are named by its keys. Those in a tuple are named by the parameters
    of the network (`own`) if these are enough, and by numbers otherwise.
    """
    if isinstance(batch, Tensor):
        return [name]
    if isinstance(batch, Mapping):
        parts = list(batch.items())
    elif 1 < len(batch) <= len(own):
        parts = list(zip(own, batch, strict=False))
    else:
        parts = [(f"{name}_{i}", part) for i, part in enumerate(batch)]
    return [name for key, part in parts for name in _names(part, key)]


def _parameters(module: nn.Module) -> list[str]:
    """Return the names of the parameters that a network's forward requires."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [
        p.name
        for p in parameters
        if p.kind == p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]


def _tensors(batch: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    _each(batch, tensors.append)
    return tensors


def _traced(served: _Served, batch: Any) -> ExportedProgram:
    """Return the traced graph, after a check that its predictions are the same."""
    network = type(served.network).__name__
    size = Dim("batch")
    shapes = {"X": _each(batch, lambda _: {0: size})}
    # A .pt2 file contains the example inputs, which must not be samples of the user.
    blank = _each(batch, torch.zeros_like)
    try:
        program = torch.export.export(
            served, (blank,), dynamic_shapes=shapes, strict=False
        )
    except Exception as error:  # torch's errors have no common base class
        raise ValueError(
            f"torch.export cannot trace the module {network} for batches of any size: "
            f"{_first_line(error)} See the error above for details. The operations in "
            "forward must not depend on the values in a batch, nor on the number of "
            "samples; use x.shape[0] for this number, not len(x)."
        ) from error
    _forget_places(program)
    run = program.module()
    for rows in ([0], [1, 0, 1]):
        part = _each(batch, operator.itemgetter(rows))
        expected, found = served(part), run(part)
        if not torch.allclose(found, expected, rtol=0, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"the graph that torch.export traced from the module {network} "
                f"predicts {found[0].tolist()}, but the module predicts "
                f"{expected[0].tolist()}. The forward of an exported module must "
                "neither draw random numbers nor change the module."
            )
    return program


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _forget_places(program: ExportedProgram) -> None:
    """Remove stack traces from the graph, as they contain paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _facts(net: Any, batch: Any, names: list[str]) -> dict[str, str]:
    """Return the metadata of the file as texts, with JSON for lists."""
    classes = net.classes_
    inputs = [
        {
            "name": name,
            "dtype": str(values.dtype).removeprefix("torch."),
            "shape": ["batch", *values.shape[1:]],
        }
        for name, values in zip(names, _tensors(batch), strict=True)
    ]
    output = {
        "name": _OUTPUT,
        "dtype": net._preparation.dtype,
        "shape": ["batch", len(classes)],
    }
    facts = {
        "estimator": type(net).__name__,
        "classes": _as_json([_plain(label) for label in classes.tolist()]),
        "classes_dtype": str(classes.dtype),
        "inputs": _as_json(inputs),
        "outputs": _as_json([output]),
        "versions": _as_json(_versions.current()),
    }
    if hasattr(net, "feature_names_in_"):
        facts["feature_names"] = _as_json(net.feature_names_in_.tolist())
    return facts


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(label: Any) -> Any:
    """Return a label that JSON supports; other types, such as dates, become text."""
    return label if isinstance(label, bool | int | float | str) else str(label)


def _writer(path: Path) -> Callable[..., None]:
    """Return the function that writes the format of a path; raise if unavailable."""
    writers = {".onnx": _write_onnx, ".pt2": _write_pt2}
    write = writers.get(path.suffix.lower())
    if write is None:
        raise ValueError(
            f"{str(path)!r} has the suffix {path.suffix!r}, which export does not "
            "support; use .onnx for ONNX, or .pt2 for a program of torch.export."
        )
    if not path.parent.is_dir():  # checked early, as tracing takes a while
        raise FileNotFoundError(
            errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent)
        )
    if write is _write_onnx:
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "export to ONNX requires onnx and onnxscript. Install them: "
                '`pip install "skbsd[export]"`. A .pt2 file needs neither.'
            ) from error
    return write


def _write_pt2(
    file: BinaryIO, program: ExportedProgram, names: list[str], facts: dict[str, str]
) -> None:
    torch.export.save(program, file, extra_files=facts)


def _write_onnx(
    file: BinaryIO, program: ExportedProgram, names: list[str], facts: dict[str, str]
) -> None:
    import onnx
    import onnxscript

    size = sum(values.nbytes for values in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise ValueError(
            f"the network has {size / 2**30:.1f} GiB of weights, but an ONNX file is "
            "limited to less than 2 GiB; export it as .pt2."
        )
    try:
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            output_names=[_OUTPUT],
            external_data=False,
            optimize=True,
            verbose=False,
        )
        _rename_inputs(made.model.graph, names)  # type: ignore[union-attr]
        model = made.model_proto  # type: ignore[union-attr]
        onnx.checker.check_model(model)
    except Exception as error:  # these errors have no common base class
        raise ValueError(
            "the graph of the network cannot be translated to ONNX: "
            f"{_first_line(error)} See the error above for details. A .pt2 file "
            "supports any graph."
        ) from error
    _tidy(model.graph)
    versions = json.loads(facts["versions"])
    versions |= {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    onnx.helper.set_model_props(model, facts | {"versions": _as_json(versions)})
    model.producer_name = "skbsd"
    model.producer_version = versions["skbsd"]
    file.write(model.SerializeToString())


def _rename_inputs(graph: Any, names: list[str]) -> None:
    """Rename the inputs, and any other values that have one of these names.

    A column may have a name such as "cat" or "linear", which torch gives to the results
    of these operations.
    """
    for node in graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"value.{value.name}"
    for value, name in zip(graph.inputs, names, strict=True):
        value.name = name


def _tidy(graph: Any) -> None:
    """Name the batch dimension, and remove torch's metadata of each operation.

    The metadata may be as large as the weights.
    """
    graph.ClearField("value_info")
    for part in (graph.node, graph.input, graph.output):
        for item in part:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
