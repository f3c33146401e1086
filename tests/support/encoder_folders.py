"""Folders of tiny encoders in the Hugging Face format, with random weights, written by transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS: Final = ("is", "this", "a", "cat", "dog", "what", "the", "##s", "photo", "of")
WIDTH: Final = 16
IMAGE_SIZE: Final = 16
MEAN: Final = (0.4, 0.5, 0.6)
STD: Final = (0.2, 0.25, 0.3)
_LAYERS: Final = {"num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES: Final = {"hidden_size": WIDTH, "intermediate_size": 32, **_LAYERS}
_TEXT_TOWER: Final = {**_SIZES, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def text_folder(folder: Path, kind: str = "bert") -> Path:
    """Encoder of texts of :data:`WORDS`, with its tokenizer."""
    bert_like = kind in ("bert", "distilbert")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if bert_like else ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    begin, end, pad = ("[CLS]", "[SEP]", "[PAD]") if bert_like else ("<s>", "</s>", "<pad>")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]" if bert_like else "<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])]
    )
    unknown = "[UNK]" if bert_like else "<unk>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=begin, sep_token=end, pad_token=pad, unk_token=unknown
    ).save_pretrained(folder)
    sizes: dict[str, Any] = dict(_SIZES)
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
    configs: dict[str, Callable[..., Any]] = {
        "bert": transformers.BertConfig,
        "distilbert": transformers.DistilBertConfig,
        "mpnet": transformers.MPNetConfig,
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
    }
    config = configs[kind](
        vocab_size=len(vocabulary), max_position_embeddings=40, pad_token_id=vocabulary[pad], **sizes
    )
    return _saved(transformers.AutoModel.from_config(config), folder)


def image_folder(folder: Path, kind: str = "vit") -> Path:
    """Encoder of images of 16×16 pixels, with what is said of their preprocessing."""
    sizes: dict[str, Any] = {**_SIZES, "image_size": IMAGE_SIZE, "patch_size": 8}
    config: Any
    if kind == "clip":
        config = transformers.CLIPConfig(vision_config=sizes, text_config=_TEXT_TOWER)
    elif kind == "siglip":
        config = transformers.SiglipConfig(vision_config=sizes, text_config=_TEXT_TOWER)
    elif kind == "dinov2":
        config = transformers.Dinov2Config(**sizes, mlp_ratio=2)
    else:
        config = transformers.ViTConfig(**sizes)
    transformers.ViTImageProcessorPil(
        image_mean=list(MEAN), image_std=list(STD), size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folder)
    return _saved(transformers.AutoModel.from_config(config), folder)


def waveform_folder(folder: Path, kind: str = "wav2vec2", norm: str = "group") -> Path:
    """Encoder of waveforms at 16 kHz, with what is said of their preprocessing."""
    configs: dict[str, Callable[..., Any]] = {
        "hubert": transformers.HubertConfig,
        "wav2vec2": transformers.Wav2Vec2Config,
    }
    config = configs[kind](
        **_SIZES,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 4, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        vocab_size=8,
    )
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    return _saved(transformers.AutoModel.from_config(config), folder)


def whisper_folder(folder: Path) -> Path:
    """Encoder of log-mel spectrograms, beside a decoder that nothing here uses."""
    config = transformers.WhisperConfig(
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=8,
        vocab_size=8,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    return _saved(transformers.WhisperModel(config), folder)


def _saved(model: Any, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # the usual ones are so small that a mistake would hardly show
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder
