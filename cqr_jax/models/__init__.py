"""The networks, by name.

To add a network, write a Flax module in its own file and add a line to `MODELS`. The
config selects it with `config.model.name`. The other fields of `config.model` are
attributes of the module.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker

# Name -> module class. The default name of a model is its kind: 'ranker' or
# 'deblocker'.
MODELS: dict[str, type[nn.Module]] = {
    "ranker": Ranker,
    "deblocker": Deblocker,
}


def create(fields: Mapping[str, Any], kind: str, **settings: Any) -> nn.Module:
    """Returns the model that the config fields describe.

    Args:
      fields: `config.model`. Holds the model's name, which is optional, and the
        attributes of its module that are saved with the weights.
      kind: 'ranker' or 'deblocker'. The default name.
      **settings: other attributes of the module, such as `dtype`.

    Raises:
      UserError: if there is no model with this name.
      TypeError: if the module has no attribute with the name of a field.
    """
    attributes = dict(fields)
    module = _module(attributes.pop("name", kind))
    attributes = {
        k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()
    }
    return module(**attributes, **settings)


def defaults(name: str) -> dict[str, Any]:
    """Returns the default of each attribute of the model with this name.

    Raises:
      UserError: if there is no model with this name.
    """
    return {
        field.name: field.default
        for field in dataclasses.fields(_module(name))
        if field.name not in ("parent", "name")  # Flax adds these
    }


def _module(name: str) -> type[nn.Module]:
    if name not in MODELS:
        raise UserError(f"model.name={name!r}: choose {' or '.join(MODELS)}")
    return MODELS[name]


def channels(model: nn.Module) -> int:
    """Returns the number of image channels of a model; the ranker has one, Y."""
    return getattr(model, "channels", 1)


def conditioned(model: nn.Module) -> bool:
    """Returns whether a model takes the compression as a second input."""
    return getattr(model, "conditioning", "none") != "none"
