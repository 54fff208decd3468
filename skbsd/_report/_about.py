"""Settings, training and versions."""

import inspect
import platform
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import sklearn
import skorch
import torch

from .._history import NAMES, outcome
from ._page import element, facts, percent, scrolling, section

# Longer values, such as whole networks, are shortened.
_LONGEST = 300


def settings(steps: Sequence[tuple[str, Any]]) -> Element:
    """Show the parameters that were set; those at their defaults are folded away."""
    chosen: list[tuple[str, str]] = []
    left: list[tuple[str, str]] = []
    for prefix, step in steps:
        defaults = _defaults(type(step))
        for name, value in step.get_params(deep=False).items():
            is_default = name in defaults and repr(value) == repr(defaults[name])
            pairs = left if is_default else chosen
            pairs.append((f"{prefix}{name}", _show(value)))
    content = [
        scrolling("Settings", facts(chosen, code=True))
        if chosen
        else element("p", "All parameters are at their defaults.")
    ]
    if left:
        summary = element("summary", f"Parameters at their defaults ({len(left)})")
        folded = scrolling("Defaults", facts(left, code=True))
        content.append(element("details", summary, folded))
    return section("Settings", *content)


def _defaults(estimator_class: type) -> dict[str, Any]:
    """Return the defaults of the constructor's parameters, those of bases included.

    Classes outside scikit-learn may pass some of their parameters on to a base class.
    """
    constructors = [vars(c).get("__init__") for c in reversed(estimator_class.__mro__)]
    return {
        parameter.name: parameter.default
        for constructor in constructors
        if inspect.isfunction(constructor)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.default is not parameter.empty
    }


def _show(value) -> str:
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def training(model: Any) -> Element | None:
    """Show the results of training, for networks that keep a history."""
    found = outcome(getattr(model, "history_", None))
    if found is None:
        return None
    n_weights = sum(p.numel() for p in model.module_.parameters())
    pairs = [("Network", f"{type(model.module_).__name__}, {n_weights:,} weights")]
    if hasattr(model, "posterior_"):
        pairs.append(("Training samples", f"{len(model.posterior_):,}"))
        pairs.append(("Prior strength c, as used", f"{model.prior_strength_:g}"))
        pairs.append(("Discount γ, as used", f"{model.discount_:g}"))
    if getattr(model, "calibration_", None) is not None:
        pairs.append(("Temperature", f"{model.temperature_:.3g}"))
        pairs.append(("Estimated fraction of wrong labels", percent(model.noise_rate_)))
    pairs.append(("Epochs", f"{found.n_epochs:,}"))
    pairs.append(("Device", str(getattr(model, "device_", model.device))))
    if found.seconds is not None:
        pairs.append(("Time", f"{found.seconds:.1f} s"))
    pairs += [
        (f"{NAMES[key].capitalize()}, last epoch", f"{value:.4g}")
        for key, value in found.last.items()
    ]
    return section("Training", scrolling("Training", facts(pairs)))


def versions() -> Element:
    """Say when, and with which versions, the report was written."""
    from .. import __version__

    now = datetime.now().astimezone()
    packages = {
        "skbsd": __version__,
        "torch": torch.__version__,
        "skorch": skorch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    time = element(
        "time", f"{now:%Y-%m-%d %H:%M %Z}", datetime=f"{now:%Y-%m-%dT%H:%M%z}"
    )
    return element("footer", element("p", "Written on ", time, f" with {listed}."))
