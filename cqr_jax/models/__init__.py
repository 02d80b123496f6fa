"""The networks, by name.

A new network is a Flax module in a file of its own, and a line in `MODELS`. The config
chooses it with `config.model.name`; its other fields are attributes of the module.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker

# Name -> module class. A model without a name is of the name of its kind: 'ranker' or
# 'deblocker'.
MODELS: dict[str, type[nn.Module]] = {"ranker": Ranker, "deblocker": Deblocker}


def create(fields: Mapping[str, Any], kind: str, **settings: Any) -> nn.Module:
    """Returns the model that config fields describe.

    Args:
      fields: `config.model`: the model's name, which may be missing, and attributes of
        its module that are saved with the weights.
      kind: 'ranker' or 'deblocker', the default of the name.
      **settings: other attributes of the module, such as `dtype`.

    Raises:
      UserError: there is no model of this name.
      TypeError: the module has no attribute of a field's name.
    """
    attributes = dict(fields)
    name = attributes.pop("name", kind)
    if name not in MODELS:
        raise UserError(f"config.model.name={name!r}: choose {' or '.join(MODELS)}")
    attributes = {
        k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()
    }
    return MODELS[name](**attributes, **settings)


def channels(model: nn.Module) -> int:
    """Returns the number of channels of a model's images; the ranker's have one, Y."""
    return getattr(model, "channels", 1)
