"""The name by which published configs and programs know the classes of `ldm.data.edit_dataset`."""

from ldm.data.edit_dataset import EditDataset, EditDatasetEval

__all__ = ["EditDataset", "EditDatasetEval"]
