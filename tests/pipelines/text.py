"""Tiny tokenizers and text encoders, built from configuration: nothing is downloaded."""

from __future__ import annotations

import threading
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BatchEncoding,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPTS = ["a fox in the snow", "two small boats at dawn"]
NEGATIVES = ["blurry", "dark and noisy"]
LENGTH = 12  # tokens of a padded prompt
WIDTH = 16  # channels of every text encoder

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
VOCABULARY = SPECIAL + sorted({word for text in PROMPTS + NEGATIVES for word in text.split()})
IDS = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
} | IDS


_one_at_a_time = threading.Lock()


class Words(PreTrainedTokenizerFast):
    """Threads may share one, unlike its base class, which sets its padding before every call."""

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        with _one_at_a_time:
            return super().__call__(*args, **kwargs)


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words between begin and end marks, in the place of every pipeline's own class and vocabulary."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", IDS["bos_token_id"]), ("</s>", IDS["eos_token_id"])]
    )
    return Words(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def clip_config() -> CLIPTextConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return CLIPTextConfig(projection_dim=WIDTH, **sizes, **IDS)


def clip() -> CLIPTextModel:
    return CLIPTextModel(clip_config())


def clip_with_projection() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(clip_config())


def t5(width: int = WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **IDS))


def umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **IDS))


def gemma2() -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**DECODER))


def llama() -> LlamaModel:
    return LlamaModel(LlamaConfig(**DECODER))


def qwen3() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(**DECODER))


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": WIDTH}
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}  # head_dim 8 / 2 pairs over time, rows, columns
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=DECODER | {"rope_scaling": rope}, vision_config=vision)
    )


def mistral3() -> Mistral3ForConditionalGeneration:
    vision = PixtralVisionConfig(hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=MistralConfig(**DECODER), vision_config=vision))


def embedded(seed: int) -> torch.Tensor:
    """A prompt as a text encoder might give it."""
    return torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
