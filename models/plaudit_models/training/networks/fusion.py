"""Fusion policy: any mix of modalities → embedding and base logits, as one torch module built from a ModelSpec.

Knows nothing about data sets, losses, files or ONNX; :mod:`.pretrain`, :mod:`.finetune` and :mod:`.export` do.

An encoder per modality turns content into ``k`` tokens. Tokens of all modalities, and one summary token, pass a small
pre-norm transformer (Vaswani et al. 2017, "Attention Is All You Need", section 3; pre-norm as Xiong et al. 2020); the
summary token becomes the embedding, and a linear head on the embedding gives the base logits. A learned token stands
in for a missing modality.

A model that scores text has a scorer beside it: the text modality's own encoder reads a dynamic action's text, and what
it makes of it is one more vector of the embedding's space. It shares everything with the policy, so they are trained
together.

An encoder has two stages. ``prepare`` holds whatever has no weights to learn (the log-mel front end of audio, a
pretrained encoder that stands still), so training does it once per item; ``forward`` does the rest.

Notation:
    b: batch size, m: number of modalities, a: number of actions, d: embedding size
    k: tokens per modality, w: width of a token, t: time steps or tokens of text, f: mel bands, n: positions or texts
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from plaudit_models.spec import AudioModality, ImageModality, Modality, ModelSpec, TextModality
from plaudit_models.training.encoders.config import EncoderConfig
from plaudit_models.training.encoders.networks import build_encoder

_TINY = 1e-12
_CHUNK_ROWS = 512
_POSITION_DROPOUT = 0.2
_MASKED = -1e4  # finite, so that a row that is all padding still gets weights and not NaN


@dataclass(frozen=True, slots=True)
class FusionConfig:
    """Sizes of a fusion policy; with the spec it is all that is needed to build the module.

    Attributes:
        vocabulary_size: number of token ids of the text modalities, padding included; 1 without text.
        width: width of a token, a multiple of ``attention_heads``.
        layers: number of transformer layers that fuse the modalities.
        attention_heads: number of attention heads in a layer.
        tokens_per_modality: number of tokens a modality contributes.
        encoders: pretrained encoders of modalities, by name; the others' are made here.
    """

    vocabulary_size: int = 1
    width: int = 128
    layers: int = 2
    attention_heads: int = 4
    tokens_per_modality: int = 2
    encoders: Mapping[str, EncoderConfig] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :func:`fusion_config_from_dict` is its inverse."""
        encoders = {name: each.to_dict() for name, each in self.encoders.items()}
        sizes = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "encoders"}
        return sizes | ({"encoders": encoders} if encoders else {})


def fusion_config_from_dict(raw: Mapping[str, Any]) -> FusionConfig:
    """Raises KeyError or TypeError where ``raw`` is no description of a config."""
    encoders = {name: EncoderConfig(**each) for name, each in raw.get("encoders", {}).items()}
    return FusionConfig(**{**raw, "encoders": encoders})


class FusionPolicy(nn.Module):
    """Content → embedding and base logits; the graph contract of :mod:`plaudit_models.spec`.

    ``forward`` is the whole contract. Training takes it apart: ``prepare`` once per item of a pool, ``encode`` once per
    distinct item of a batch, ``fuse`` once per row.
    """

    def __init__(self, spec: ModelSpec, config: FusionConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        k, w = config.tokens_per_modality, config.width
        self.encoders = nn.ModuleDict(
            {name: _encoder(name, modality, config) for name, modality in spec.modalities.items()}
        )
        # One tag per token tells the transformer which modality it came from.
        self.tags = nn.Parameter(torch.randn(len(spec.modalities), k, w) * 0.02)
        self.missing = nn.Parameter(torch.randn(len(spec.modalities), k, w) * 0.02)
        self.summary = nn.Parameter(torch.randn(1, 1, w) * 0.02)
        self.layers = nn.ModuleList([_FusionLayer(w, config.attention_heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(w)
        self.project = nn.Linear(w, spec.embedding_size)
        self.action_head = nn.Linear(spec.embedding_size, len(spec.actions))
        self.text_scorer = TextScorer(spec, config) if spec.scores_text else None

    def prepare(self, name: str, content: Tensor) -> Tensor:
        """Stage of modality ``name``'s encoder that has no weights; ``content`` is as in the graph contract."""
        return self.encoder(name).prepare(content)

    def encoder(self, name: str) -> Encoder:
        """Encoder of modality ``name``."""
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def settle(self) -> None:
        """Let pretrained encoders that were tuned stand still from now on, in place."""
        for encoder in self.encoders.values():
            if isinstance(encoder, PretrainedEncoder):
                encoder.tuned = encoder.keeps_content = False
                encoder.pretrained.requires_grad_(False)
        still = {name: replace(each, tuned=False) for name, each in self.config.encoders.items()}
        self.config = replace(self.config, encoders=still)

    def encode(self, name: str, prepared: Tensor) -> Tensor:
        """Prepared items of modality ``name`` → tokens ``[b, k, w]``."""
        return self.encoders[name](prepared)

    def fuse(self, tokens: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every modality → embedding and base logits.

        Args:
            tokens: for every modality of the spec its tokens, ``[b, k, w]``.
            present: ``[b, m]``, 1 where the modality was given; where it is 0 its tokens have no influence.

        Returns:
            embedding ``[b, d]`` in (-1, 1), and base_logits ``[b, a]``.
        """
        # where, not multiplication: a NaN in a missing input must not reach the output.
        given = [
            torch.where(present[:, i, None, None] > 0.5, tokens[name], self.missing[i]) + self.tags[i]
            for i, name in enumerate(self.spec.modalities)
        ]
        x = torch.cat([self.summary.expand(present.shape[0], -1, -1), *given], dim=1)
        for layer in self.layers:
            x = layer(x)
        embedding = torch.tanh(self.project(self.norm(x[:, 0])))
        return embedding, self.action_head(embedding)

    def text_vectors(self, texts: Tensor) -> Tensor:
        """Token ids ``[n, t]`` of texts → ``[n, d]``; logits of the texts are ``embedding · vectorsᵀ``.

        Raises:
            ValueError: the model scores no text.
        """
        name, _ = self.spec.dynamic_action_modality
        return self._scorer()(self.encode(name, self.prepare(name, texts)))

    def action_vectors(self) -> Tensor:
        """Vectors of the actions' names, ``[a, d]``."""
        return self.text_vectors(self._scorer().action_texts)

    def _scorer(self) -> TextScorer:
        if self.text_scorer is None:
            raise ValueError(f"{self.spec.name!r} scores no text; its spec must say scores_text = true")
        return self.text_scorer

    def forward(self, *content_and_present: Tensor) -> tuple[Tensor, Tensor]:
        """One input per modality in spec order, then ``present`` ``[b, m]``; returns embedding and base_logits."""
        *contents, present = content_and_present
        tokens = {
            name: self.encode(name, self.prepare(name, content))
            for name, content in zip(self.spec.modalities, contents, strict=True)
        }
        return self.fuse(tokens, present)


class TextScorer(nn.Module):
    """Vectors of dynamic actions, from their tokens of the text encoder, ``[n, k, w]``; the embedding is multiplied by
    them.

    vector = σ·W·g/‖g‖ with g = tokens·P + p, so that base logits e·vector are bounded whatever a text that training
    never met makes of g. Dynamic actions are compared with each other alone, so there is no bias.

    Attributes:
        action_texts: token ids of the model's actions, ``[a, t]``: the dynamic actions that it is trained on.
    """

    def __init__(self, spec: ModelSpec, config: FusionConfig) -> None:
        super().__init__()
        d = spec.embedding_size
        self.project = nn.Linear(config.tokens_per_modality * config.width, d)
        self.turn = nn.Linear(d, d, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))
        _, modality = spec.dynamic_action_modality
        self.register_buffer("action_texts", torch.zeros(len(spec.actions), modality.max_tokens, dtype=torch.int64))
        self.action_texts: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        g = self.project(tokens.flatten(1))
        g = g / torch.sqrt((g * g).sum(dim=1, keepdim=True) + _TINY)
        return torch.exp(self.log_scale) * self.turn(g)


class _FusionLayer(nn.Module):
    """One pre-norm transformer layer, ``[b, n, w] → [b, n, w]``."""

    def __init__(self, width: int, attention_heads: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, w = x.shape[1], x.shape[2]
        heads, size = self.attention_heads, w // self.attention_heads
        # [b, n, 3w] → [3, b, heads, n, size]
        mixed = self.queries_keys_values(self.attention_norm(x)).reshape(-1, n, 3, heads, size)
        q, k, v = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) * (1.0 / math.sqrt(size)), dim=-1)
        x = x + self.output((weights @ v).transpose(1, 2).reshape(-1, n, w))
        return x + self.contract(torch.relu(self.expand(self.mlp_norm(x))))


class Encoder(nn.Module):
    """Content of one modality → tokens ``[b, k, w]``.

    Attributes:
        keeps_content: prepared items are content of the modality's kind, which augmentation may change.
    """

    keeps_content = True

    def prepare(self, content: Tensor) -> Tensor:
        return content

    def prepare_pool(self, pool: Tensor) -> Tensor:
        """Prepared items of a pool ``[u, ...]``, without gradient."""
        with torch.no_grad():  # an empty pool still needs a shape, and is never looked into
            return torch.cat([self.prepare(chunk) for chunk in pool.split(_CHUNK_ROWS)])

    def set_trained(self, trained: bool) -> None:
        """Whether its weights change."""
        self.requires_grad_(trained)


class PretrainedEncoder(Encoder):
    """Pretrained encoder, and a layer that makes tokens of its positions.

    The network's weights are as it was given, unless the config says that they are tuned. A fine-tuning job never
    changes them: what it trains of this encoder is the layer.
    """

    def __init__(self, modality: Modality, pretrained: EncoderConfig, config: FusionConfig) -> None:
        super().__init__()
        self.pretrained = build_encoder(pretrained, modality)
        self.tuned = pretrained.tuned
        self.keeps_content = self.tuned and isinstance(modality, TextModality | ImageModality)
        self.tokens, self.width = config.tokens_per_modality, config.width
        size = self.pretrained.positions * self.pretrained.width
        self.norm = nn.BatchNorm1d(size)
        self.drop = nn.Dropout(_POSITION_DROPOUT)
        self.read = nn.Linear(size, self.tokens * self.width)
        self.pretrained.requires_grad_(self.tuned)

    def prepare(self, content: Tensor) -> Tensor:
        return content if self.tuned else self.pretrained(content)

    def prepare_pool(self, pool: Tensor) -> Tensor:
        with torch.no_grad():
            return pool if self.tuned or len(pool) == 0 else self.pretrained.encode_pool(pool)

    def forward(self, prepared: Tensor) -> Tensor:
        positions = self.pretrained(prepared) if self.tuned else prepared
        return self.read(self.drop(self.norm(positions.flatten(1)))).reshape(-1, self.tokens, self.width)

    def train(self, mode: bool = True) -> PretrainedEncoder:
        super().train(mode)
        self.pretrained.train(mode and self.tuned)
        return self

    def set_trained(self, trained: bool) -> None:
        self.requires_grad_(trained)
        self.pretrained.requires_grad_(False)


class _Pool(nn.Module):
    """Positions ``[b, n, w]`` → ``k`` tokens ``[b, k, w]``, each a weighted mean whose weights are learned."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, tokens)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, valid_mask: Tensor | None = None) -> Tensor:
        """``valid_mask``: ``[b, n]``, 1 where the position counts."""
        score = self.score(x)
        if valid_mask is not None:
            score = score + (1.0 - valid_mask[:, :, None]) * _MASKED
        return torch.softmax(score, dim=1).transpose(1, 2) @ self.value(x)


class _ImageEncoder(Encoder):
    """Small conv net over ``[b, channels, height, width]``, halved until at most 4 × 4 positions are left."""

    def __init__(self, shape: tuple[int, ...], config: FusionConfig) -> None:
        super().__init__()
        channels, height, width = shape
        size = min(32, config.width)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels), *_conv_2d(channels, size, stride=1)]
        while max(height, width) > 4:
            grown = min(2 * size, config.width)
            layers += _conv_2d(size, grown, stride=2)
            size, height, width = grown, -(-height // 2), -(-width // 2)
        self.net = nn.Sequential(*layers)
        self.widen = nn.Linear(size, config.width)
        self.positions = nn.Parameter(torch.randn(height * width, config.width) * 0.02)
        self.pool = _Pool(config.width, config.tokens_per_modality)

    def forward(self, prepared: Tensor) -> Tensor:
        return self.pool(torch.relu(self.widen(self.net(prepared).flatten(2).transpose(1, 2)) + self.positions))


class _SequenceEncoder(Encoder):
    """Small conv net over time, ``[b, channels, t] → [b, k, w]``."""

    def __init__(self, channels: int, config: FusionConfig) -> None:
        super().__init__()
        w = config.width
        self.net = nn.Sequential(
            nn.BatchNorm1d(channels),
            *_conv_1d(channels, w, size=5, stride=2),
            *_conv_1d(w, w, size=3, stride=2),
            *_conv_1d(w, w, size=3, stride=1),
        )
        self.pool = _Pool(w, config.tokens_per_modality)

    def forward(self, prepared: Tensor) -> Tensor:
        return self.pool(self.net(prepared).transpose(1, 2))


class _AudioEncoder(_SequenceEncoder):
    """Log-mel front end, then a conv net over time with the mel bands as channels."""

    def __init__(self, modality: AudioModality, config: FusionConfig) -> None:
        front_end = LogMel(modality.sample_rate_hz, modality.max_samples)
        super().__init__(front_end.mel_bands, config)
        self.front_end = front_end

    def prepare(self, content: Tensor) -> Tensor:
        return self.front_end(content)


class LogMel(nn.Module):
    """Waveform ``[b, samples]`` → log-mel spectrogram ``[b, f, t]``, as two convolutions with fixed kernels.

    The first convolves with Hann-windowed cosines and sines (a short-time Fourier transform); the squares of both
    are summed into triangular bands on the mel scale (2595·log10(1 + hz/700)) by the second.
    """

    def __init__(
        self, sample_rate_hz: int, samples: int, *, window_s: float = 0.032, hop_s: float = 0.016, mel_bands: int = 40
    ) -> None:
        super().__init__()
        self.mel_bands = mel_bands
        window = min(round(window_s * sample_rate_hz), samples)
        self.hop = max(1, min(round(hop_s * sample_rate_hz), window))
        bands = _mel_filters(sample_rate_hz, window, mel_bands)  # [f, bins]
        heard = bands.sum(dim=0) > 0
        phase = 2 * math.pi * torch.arange(window // 2 + 1)[heard, None] * torch.arange(window) / window
        hann = torch.hann_window(window, periodic=True, dtype=torch.float64) * (2.0 / window)
        fourier = torch.cat([phase.cos() * hann, phase.sin() * hann])
        self.register_buffer("fourier", fourier[:, None, :].float())  # [2·bins, 1, window]
        self.register_buffer("mel", torch.cat([bands[:, heard], bands[:, heard]], dim=1)[:, :, None].float())
        # Explicit biases keep the exported graph lean: the exporter would compute a missing bias at every call.
        self.register_buffer("silence", torch.zeros(len(fourier)))
        self.register_buffer("floor", torch.full((mel_bands,), 1e-7))
        self.fourier: Tensor
        self.mel: Tensor
        self.silence: Tensor
        self.floor: Tensor

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = nn.functional.conv1d(waveform[:, None, :], self.fourier, self.silence, stride=self.hop)
        return torch.log(nn.functional.conv1d(spectrum * spectrum, self.mel, self.floor))


def _mel_filters(sample_rate_hz: int, window: int, mel_bands: int) -> Tensor:
    """Triangular filters ``[f, window // 2 + 1]``, evenly spaced in mel from 0 Hz to half the sample rate."""
    top = 2595.0 * math.log10(1.0 + sample_rate_hz / 2 / 700.0)
    corners = 700.0 * (10.0 ** (torch.linspace(0, top, mel_bands + 2, dtype=torch.float64) / 2595.0) - 1.0)
    hz = torch.arange(window // 2 + 1, dtype=torch.float64) * sample_rate_hz / window
    low, mid, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    # A band narrower than the bin spacing would catch no bin at all, so every flank is at least one bin wide.
    bin_hz = sample_rate_hz / window
    rising = (hz - low) / (mid - low).clamp_min(bin_hz) + ((mid - low) < bin_hz) * (1 - (mid - low) / bin_hz)
    falling = (high - hz) / (high - mid).clamp_min(bin_hz) + ((high - mid) < bin_hz) * (1 - (high - mid) / bin_hz)
    return torch.minimum(rising, falling).clamp(0.0, 1.0)


class _TextEncoder(Encoder):
    """Token embeddings and a convolution over neighbouring tokens, ``[b, t] → [b, k, w]``.

    Words and neighbours count, positions do not, because training sees few wordings at few positions: in an experiment
    that only told the demo's kinds of question apart, learned positions gave 0.91 of unseen wordings right (0.94 at
    best), none 0.96, as means of three seeds. New embeddings are small so that a token that training never met says
    little.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        w = config.width
        self.words = nn.Embedding(config.vocabulary_size, w)
        self.near = nn.Conv1d(w, w, 3, padding=1)
        self.pool = _Pool(w, config.tokens_per_modality)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, prepared: Tensor) -> Tensor:
        valid_mask = (prepared > 0).to(self.words.weight.dtype)
        x = self.words(prepared) * valid_mask[:, :, None]
        x = x + torch.relu(self.near(x.transpose(1, 2)).transpose(1, 2))
        return self.pool(x, valid_mask)


class _FlatEncoder(Encoder):
    """Tensor without a grid: flattened, standardised, then a two-layer perceptron."""

    def __init__(self, shape: tuple[int, ...], config: FusionConfig) -> None:
        super().__init__()
        self.tokens, self.width = config.tokens_per_modality, config.width
        size = math.prod(shape)
        self.net = nn.Sequential(
            nn.BatchNorm1d(size),
            nn.Linear(size, 2 * self.width),
            nn.ReLU(),
            nn.Linear(2 * self.width, self.width * self.tokens),
        )

    def forward(self, prepared: Tensor) -> Tensor:
        return self.net(prepared.flatten(1)).reshape(-1, self.tokens, self.width)


def _encoder(name: str, modality: Modality, config: FusionConfig) -> Encoder:
    if name in config.encoders:
        return PretrainedEncoder(modality, config.encoders[name], config)
    if isinstance(modality, ImageModality):
        return _ImageEncoder(modality.shape, config)
    if isinstance(modality, AudioModality):
        return _AudioEncoder(modality, config)
    if isinstance(modality, TextModality):
        return _TextEncoder(config)
    # A tensor: [channels, height, width] is a grid, [channels, time] a sequence, anything else a list of numbers.
    if len(modality.shape) == 3:
        return _ImageEncoder(modality.shape, config)
    if len(modality.shape) == 2:
        return _SequenceEncoder(modality.shape[0], config)
    return _FlatEncoder(modality.shape, config)


def _conv_2d(inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv_1d(inputs: int, outputs: int, *, size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv1d(inputs, outputs, size, stride=stride, padding=size // 2)
    return [conv, nn.BatchNorm1d(outputs), nn.ReLU()]
