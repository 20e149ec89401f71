"""Fine-tune CLIP with StarFT, and compare the worst group with that of the zero-shot model.

Run it as it is (`python examples/train.py`): the package contains a tiny model and images. Then use your own.
"""

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
    starft_hf.StarFTConfig("example-train", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")
