"""Datasets of shards: Parquet files and WebDataset tar files, given as lists of files for every split."""

from starft_hf.data.shards.parquet import read_parquet
from starft_hf.data.shards.sets import Shards, without_metadata_of_shards
from starft_hf.data.shards.webdataset import read_webdataset


__all__ = ["Shards", "read_parquet", "read_webdataset", "without_metadata_of_shards"]
