"""Train an adapter instead of the whole model, and merge it into a plain CLIPModel."""

import starft_hf
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split


# Yours: "openai/clip-vit-base-patch16"; starft_hf.data.loading.load_splits("photos"); "background"; "label", "place".
model = MODEL_FOLDER
splits = {name: make_split(name) for name in ("train", "validation", "test")}
spuriosity = list(BACKGROUND_TEMPLATES)
settings = {"group_column": "group", "learning_rate": 2e-4, "max_steps": 60}
# New in this example: an adapter takes larger steps
settings |= {"learning_rate": 2e-3, "max_steps": 100}
# End

trainer = starft_hf.StarFTTrainer(
    model,
    starft_hf.StarFTConfig("example-train_lora", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
    # New in this example: attention of both towers; any PEFT configuration that fits may be given
    peft_config="lora",
    # End
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")
# New in this example: a plain CLIPModel
trainer.merge_and_save("example-train_lora-merged")
# End
