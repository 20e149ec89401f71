"""Tiny random dual encoders of every family, with processors, built from configurations."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AltCLIPConfig,
    AltCLIPModel,
    AutoConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)


FAMILIES = [
    *("clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "align"),
    "vision-text-dual-encoder",
]


def letter_tokenizer(max_length=77, inputs=("input_ids", "attention_mask")):
    """A tokenizer whose tokens are bytes: any text can be written with it."""
    vocabulary = {"<pad>": 0, "<unk>": 1, "<x>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    vocabulary |= {"<s>": len(vocabulary), "</s>": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([in_bytes, pre_tokenizers.Split("", "isolated")])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=max_length,
        model_input_names=list(inputs),
    )


def family(name, dtype=torch.float32, max_length=77):
    """A tiny model of the family and its processor."""
    torch.manual_seed(0)
    inputs = ("input_ids",) if name.startswith("siglip") else ("input_ids", "attention_mask")
    tokenizer = letter_tokenizer(max_length, inputs)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "max_position_embeddings": max_length,
    }
    vision = size | {"image_size": 16, "patch_size": 8}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = CLIPProcessor(image_processor, tokenizer)
    if name == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    elif name == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
        processor = SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    elif name == "siglip2":
        vision = size | {"patch_size": 8, "num_patches": 16}
        model = Siglip2Model(Siglip2Config(text_config=text | {"projection_size": 32}, vision_config=vision))
        processor = Siglip2Processor(Siglip2ImageProcessor(patch_size=8, max_num_patches=16), tokenizer)
    elif name == "metaclip_2":
        model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=vision, projection_dim=24))
    elif name == "altclip":
        text = text | {"project_dim": 24, "max_position_embeddings": max_length + 2}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    elif name == "chinese_clip":
        model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    elif name == "align":
        vision = {
            "image_size": 64,
            "hidden_dim": 32,
            "width_coefficient": 0.1,
            "depth_coefficient": 0.1,
            "depthwise_padding": [],
            # With fewer, the activations of the random tower vanish in float32.
            "initializer_range": 0.3,
        }
        model = AlignModel(
            AlignConfig(text_config=text, vision_config=vision, projection_dim=32, initializer_range=0.3)
        )
        # ALIGN's image features stay as wide as its vision tower makes them.
        image_processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
        processor = CLIPProcessor(image_processor, tokenizer)
    elif name == "vision-text-dual-encoder":
        return towers("vit", "bert", dtype, max_length)
    return model.to(dtype).eval(), processor


VISION_TOWERS = ["vit", "clip_vision_model", "efficientnet", "convnext", "resnet", "swin"]
TEXT_TOWERS = ["bert", "roberta", "distilbert"]


def towers(vision, text, dtype=torch.float32, max_length=77, **changes):
    """A tiny `VisionTextDualEncoderModel` of towers of these types, without dropout, and its processor."""
    torch.manual_seed(0)
    tokenizer = letter_tokenizer(max_length)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    of_vision = {
        "vit": size | {"image_size": 16, "patch_size": 8},
        "clip_vision_model": size | {"image_size": 16, "patch_size": 8},
        # None of the convolutional ones has `hidden_size`, which the whole model asks for.
        "efficientnet": {"width_coefficient": 0.1, "in_channels": [32, 16], "out_channels": [16, 24]}
        | {"kernel_sizes": [3, 3], "strides": [1, 2], "num_block_repeats": [1, 2], "expand_ratios": [1, 6]}
        | {"depth_coefficient": 1.0, "depthwise_padding": [], "drop_connect_rate": 0.0, "initializer_range": 0.3}
        | {"hidden_dim": 128, "hidden_size": 128},
        "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "hidden_size": 16},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        | {"hidden_size": 16},
        "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
        | {"window_size": 2, "drop_path_rate": 0.0},
    }
    of_text = {
        "bert": size | {"max_position_embeddings": max_length},
        # It counts positions from the padding token on.
        "roberta": size | {"max_position_embeddings": max_length + 1},
        "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "dropout": 0.0}
        | {"attention_dropout": 0.0, "max_position_embeddings": max_length},
    }
    special = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id}
    special |= {"eos_token_id": tokenizer.eos_token_id}
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = VisionTextDualEncoderModel(
        VisionTextDualEncoderConfig.from_vision_text_configs(
            AutoConfig.for_model(vision, **of_vision[vision] | (without if vision in ("vit", "swin") else {})),
            AutoConfig.for_model(text, **of_text[text] | special | (without if text != "distilbert" else {})),
            projection_dim=24,
            **changes,
        )
    )
    pixels = 16 if "image_size" in of_vision[vision] else 32
    crop = {"height": pixels, "width": pixels}
    image_processor = CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size=crop)
    return model.to(dtype).eval(), VisionTextDualEncoderProcessor(image_processor, tokenizer)
