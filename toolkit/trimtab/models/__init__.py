"""Models: where they come from, what identifies them, and where their parts are."""

from trimtab.models.adapter import Adapter, Site, adapter_for
from trimtab.models.loading import LoadedModel, load_model

__all__ = ["Adapter", "LoadedModel", "Site", "adapter_for", "load_model"]
