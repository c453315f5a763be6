"""Records: frozen dataclasses that are pytrees, the form in which the library holds numbers."""

import dataclasses
from typing import Any, dataclass_transform

import jax


def static(**kwargs: Any) -> Any:
    """A field of a :func:`record` that is not a leaf: a function, a shape, a count or a flag.

    Args:
      **kwargs: what :func:`dataclasses.field` takes, ``default`` say.

    Returns:
      A dataclass field. Its value must be hashable: it is part of the record's type, and a record
      with another static value compiles anew.
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def record[T](cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree.

    Fields are leaves (or subtrees), so a record built anew with other numbers never recompiles and
    can be swept by ``vmap`` and differentiated by ``grad``; fields made by :func:`static` are part
    of its structure. Checks belong in the function that constructs a record, not here: a
    transformation fills the fields with tracers and markers.

    Args:
      cls: a class with annotated fields.

    Returns:
      The same class, registered.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))
