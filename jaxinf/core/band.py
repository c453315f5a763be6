"""Bands of an example, one on each device of a mesh axis, and what each sees of the others."""

import jax
from jaxtyping import Array, Float

from jaxinf.core.record import record, static


@record
class Band:
    """This device's band, under ``shard_map`` over a mesh axis that divides leading axes.

    Where it is ``displaced``, the other bands are seen as they were at the last step.
    """

    axis: str = static()
    displaced: bool = static()

    def own(self, whole: Float[Array, "n ..."]) -> Float[Array, "m ..."]:
        """Return this band of an array of the whole."""
        size = whole.shape[0] // jax.lax.axis_size(self.axis)
        return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(self.axis) * size, size)

    def whole(
        self, fresh: Float[Array, "m ..."], stale: Float[Array, "m ..."]
    ) -> Float[Array, "n ..."]:
        """Return the whole from every device's band, by one all-gather.

        Args:
          fresh: this device's band as it is now.
          stale: the same as it was at the last step.

        Returns:
          All bands in order: fresh ones, which must be waited for; where displaced, this device's
          fresh and the others' stale, which were there before the step began.
        """
        sent = stale if self.displaced else fresh
        whole = jax.lax.all_gather(sent, self.axis, tiled=True)
        if not self.displaced:
            return whole
        start = jax.lax.axis_index(self.axis) * fresh.shape[0]
        return jax.lax.dynamic_update_slice_in_dim(whole, fresh, start, 0)
