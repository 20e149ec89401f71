"""Interpolate between the zero-shot and the fine-tuned weights, and choose alpha on validation data."""

import starft_hf
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split


# Yours: "openai/clip-vit-base-patch16"; starft_hf.data.loading.load_splits("photos"); "background"; "label", "place".
model = MODEL_FOLDER
splits = {name: make_split(name) for name in ("train", "validation", "test")}
spuriosity = list(BACKGROUND_TEMPLATES)
settings = {"group_column": "group", "learning_rate": 2e-4, "max_steps": 60}

trainer = starft_hf.StarFTTrainer(
    model,
    starft_hf.StarFTConfig("example-wise_ft", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")

# New in this example: alpha 0 is the zero-shot model, and 1 the fine-tuned one
zero_shot = starft_hf.load(model).model


def evaluate(interpolated):
    names = ("validation", "test")
    shared = {"group_column": "group", "progress": False}
    return {name: starft_hf.evaluate_zero_shot(interpolated, None, splits[name], **shared) for name in names}


found = starft_hf.sweep(zero_shot, trainer.model, evaluate)
alpha = found.best("validation")
starft_hf.interpolate_checkpoints(model, "example-wise_ft", alpha, "example-wise_ft-best")
worst_group = dict(zip(found.alphas, found.values("test"), strict=True))[alpha]
print(f"worst group: {worst_group:.1%} with alpha {alpha}")
# End
