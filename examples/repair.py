"""Improve the worst group of the fine-tuned model on validation data, without training it again."""

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
    starft_hf.StarFTConfig("example-repair", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")

# New in this example: "nothing" is a possible outcome, and then nothing is written
repaired = starft_hf.repair("example-repair", None, splits["validation"], base=model, group_column="group")
print(f"{repaired.method}: {repaired.before.worst_group:.1%} before, {repaired.after.worst_group:.1%} after")
# End
