"""Parts of the model family; see `medflax.models`."""
