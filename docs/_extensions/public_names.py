"""A warning for each public name that the API pages forget."""

import importlib
import pkgutil

from sphinx.util import logging

logger = logging.getLogger(__name__)


def check(app, env):
    """Compare the `__all__` of each public module with what is documented."""
    package = importlib.import_module(app.config.public_names_of)
    documented = env.domains["py"].objects
    modules = [package.__name__]
    modules += [
        f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    ]
    for module in modules:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            # A class or function may be shown where its package hands it on.
            if documented.keys().isdisjoint(
                {f"{module}.{name}", f"{package.__name__}.{name}"}
            ):
                logger.warning("%s.%s is public, but on no API page", module, name)


def setup(app):
    """Check when all pages are read."""
    app.add_config_value("public_names_of", None, "env", [str])
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
