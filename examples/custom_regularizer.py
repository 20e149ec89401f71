"""Register your own regularizer: here, the squared distance of all embeddings to the reference's."""

import starft_hf
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, make_split


# Yours: "openai/clip-vit-base-patch16"; starft_hf.data.loading.load_splits("photos"); "background"; "label", "place".
model = MODEL_FOLDER
splits = {name: make_split(name) for name in ("train", "validation", "test")}
spuriosity = list(BACKGROUND_TEMPLATES)
settings = {"group_column": "group", "learning_rate": 2e-4, "max_steps": 60}


# New in this example: one value per row, of which the mean is taken; see RegularizerInputs
def distance(inputs):
    images = inputs.image_embeds - inputs.reference_image_embeds
    captions = inputs.column_embeds - inputs.reference_column_embeds
    return images.square().sum(-1) + captions.square().sum(-1).mean()


starft_hf.register_regularizer(starft_hf.Regularizer("distance", distance))
settings |= {"regularizer": "distance", "reg_weight": 100.0}
# End

trainer = starft_hf.StarFTTrainer(
    model,
    starft_hf.StarFTConfig("example-custom_regularizer", **settings),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    spuriosity=spuriosity,
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
trainer.save_model()
print(f"worst group: {before['eval_worst_group_accuracy']:.1%} before, {after['eval_worst_group_accuracy']:.1%} after")
