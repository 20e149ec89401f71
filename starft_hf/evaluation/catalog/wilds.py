"""Benchmarks of WILDS: iWildCam and FMoW, on their test sets of a shifted distribution."""

from typing import Any

from datasets import Value
from huggingface_hub import hf_hub_download

from starft_hf.evaluation.catalog.classes import ClassSpace, classes_from_names
from starft_hf.evaluation.catalog.columns import WEBDATASET_IMAGES, find_column, with_values
from starft_hf.evaluation.catalog.entry import BenchmarkEntry, HubSource


IWILDCAM_REPOSITORY = "djghosh/wds_wilds-iwildcam_test"
CLASS_FILE = "classnames.txt"

# In the order of their labels.
# fmt: off
FMOW_CLASSES = (
    "airport", "airport_hangar", "airport_terminal", "amusement_park", "aquaculture", "archaeological_site", "barn",
    "border_checkpoint", "burial_site", "car_dealership", "construction_site", "crop_field", "dam", "debris_or_rubble",
    "educational_institution", "electric_substation", "factory_or_powerplant", "fire_station", "flooded_road",
    "fountain", "gas_station", "golf_course", "ground_transportation_station", "helipad", "hospital",
    "impoverished_settlement", "interchange", "lake_or_pond", "lighthouse", "military_facility",
    "multi-unit_residential", "nuclear_powerplant", "office_building", "oil_or_gas_facility", "park",
    "parking_lot_or_garage", "place_of_worship", "police_station", "port", "prison", "race_track", "railway_bridge",
    "recreational_facility", "road_bridge", "runway", "shipyard", "shopping_mall", "single-unit_residential",
    "smokestack", "solar_farm", "space_facility", "stadium", "storage_tank", "surface_mine", "swimming_pool",
    "toll_booth", "tower", "tunnel_opening", "waste_disposal", "water_treatment_facility", "wind_farm", "zoo",
)
# fmt: on


def iwildcam_classes() -> ClassSpace:
    """The class names of iWildCam, out of a file of the repository its images are in.

    Raises:
        ValueError: if it cannot be downloaded.
    """
    try:
        path = hf_hub_download(IWILDCAM_REPOSITORY, CLASS_FILE, repo_type="dataset")
    except Exception as error:
        raise ValueError(
            f"the 182 class names of iWildCam could not be read from {CLASS_FILE} of the data set "
            f"{IWILDCAM_REPOSITORY}: {error}. Pass load_benchmark('iwildcam', classes=...) with names in label order "
            "or a file of one name per line; WILDS publishes them with its download (wilds.stanford.edu)."
        ) from error
    return classes_from_names(path)


def fmow_regions(dataset: Any, entry: BenchmarkEntry) -> Any:
    """The regions of FMoW, by index out of the arrays that the shards hold, or by name as they are.

    Raises:
        ValueError: if there are only indices, and no names for them.
    """
    column = find_column(dataset, ["region", "npy"], entry.name, "region")
    if getattr(dataset.features[column], "dtype", None) in ("string", "large_string"):
        return dataset
    if "region" not in entry.group_names:
        raise ValueError(
            f"the data set for {entry.name!r} has regions by index, and their names were not passed, so that 'Other' "
            "cannot be left out. WILDS numbers regions as they first occur in rgb_metadata.csv of its download "
            "(wilds.stanford.edu). Pass load_benchmark('fmow', group_names={'region': [...]})."
        )
    return dataset if column == "region" else with_values(dataset, "region", [column], region_index, Value("int64"))


def region_index(array: Any) -> int:
    """The index of the region in an array of FMoW, which holds region, year and class."""
    return int(array[0])


IWILDCAM = BenchmarkEntry(
    name="iwildcam",
    title="iWildCam (WILDS)",
    hub=(HubSource(IWILDCAM_REPOSITORY, "test", data_files="test/*.tar"),),
    classes=iwildcam_classes,
    num_classes=182,
    templates=("a photo of {}.", "{} in the wild."),
    metric="macro_f1",
    image_columns=("image", *WEBDATASET_IMAGES),
    label_columns=("label", "cls"),
    rows=42791,
    license_note="CDLA-Permissive 1.0, as WILDS states",
    sources=("arXiv 2004.10340", "arXiv 2012.07421", "arXiv 2109.01903", "wilds.datasets.iwildcam_dataset"),
    notes=(
        "The test set of other camera traps. classes: names in label order or a file with one per line; without it, "
        "classnames.txt of the repository is read. Some names are there twice. Macro F1 is over the classes that "
        "occur among the labels, as in WILDS."
    ),
)

FMOW = BenchmarkEntry(
    name="fmow",
    title="FMoW (WILDS)",
    hub=(HubSource("djghosh/wds_wilds-fmow_test", "test", data_files="test/*.tar"),),
    classes=ClassSpace(FMOW_CLASSES),
    num_classes=62,
    templates=("satellite photo of a {}.", "aerial photo of a {}."),
    metric="worst_group_accuracy",
    image_columns=("image", *WEBDATASET_IMAGES),
    label_columns=("label", "cls"),
    steps=(fmow_regions,),
    group_columns=("region",),
    ignored_groups=("Other",),
    rows=22108,
    license_note="FMoW Challenge Public License, as WILDS states",
    sources=("arXiv 1711.07846", "arXiv 2012.07421", "arXiv 2109.01903", "wilds.datasets.fmow_dataset"),
    notes=(
        "The test set of later years. group_names: {'region': names in the order of WILDS' indices}. Whether the "
        "shards hold regions was not seen; a column 'region' of names is taken as well. The prompts are the first two "
        "of the longer lists in use. The result's own worst group may be 'Other'; score leaves it out."
    ),
)

ENTRIES = (IWILDCAM, FMOW)
