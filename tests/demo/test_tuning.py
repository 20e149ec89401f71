"""What `tune` chooses on the demo's task, by validation data, and how it does on test data."""

from statistics import fmean

import pytest

from starft_hf import StarFTConfig, tune
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split


SEEDS = (0, 1, 2)


@pytest.mark.slow
def test_what_is_chosen_is_better_than_zero_shot_on_test_data(tmp_path):
    found = []
    for seed in SEEDS:
        args = StarFTConfig(
            output_dir=str(tmp_path / str(seed)),
            reference_cache_dir=str(tmp_path / "features"),
            learning_rate=4e-4,
            max_steps=100,
            warmup_steps=0,
            per_device_eval_batch_size=256,
            crop_scale=None,
            group_column="group",
            seed=seed,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        result = tune(
            MODEL_FOLDER,
            args,
            make_split("train", seed=seed),
            make_split("validation", seed=seed),
            test_dataset=make_split("test", seed=1000),
            weights=[10, 30, 90],
            alphas=[0.5, 0.75, 1],
            spuriosity=list(BACKGROUND_TEMPLATES),
        )
        test = result.test["test"]
        found.append([(one.worst_group_accuracy, one.accuracy) for one in (test["zero-shot"], [*test.values()][-1])])
    for measure in (0, 1):
        zero_shot, chosen = (fmean(pair[model][measure] for pair in found) for model in (0, 1))
        assert chosen > zero_shot, found
