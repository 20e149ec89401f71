"""Find what is correlated with the labels, without group labels, and train with what was found."""

import starft_hf
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split


# Yours: "openai/clip-vit-base-patch16"; starft_hf.data.loading.load_splits("photos"); "background"; "label", "place".
model = MODEL_FOLDER
splits = {name: make_split(name) for name in ("train", "validation", "test")}
spuriosity = list(BACKGROUND_TEMPLATES)
settings = {"group_column": "group", "learning_rate": 2e-4, "max_steps": 60}

# New in this example: which of these templates are correlated with a class?
found = starft_hf.discover_spuriosity(model, None, splits["train"], [*BACKGROUND_TEMPLATES, "{} at night."])
print(found)
found.save("example-discover-table")  # the table, a heat map, example images and the pool
spuriosity = found.pool()
# End

trainer = starft_hf.StarFTTrainer(
    model,
    starft_hf.StarFTConfig("example-discover", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")
