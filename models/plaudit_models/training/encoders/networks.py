"""Networks of pretrained encoders, one class per kind of modality: content → positions ``[b, p, h]``.

Each takes what the graph contract of :mod:`plaudit_models.spec` says of its modality, has its preprocessing inside, and
reduces what the encoder gives to a few positions. Weights are random until they are loaded; transformers builds the
networks, and is needed in training alone.

Notation:
    b: batch size, p: positions, h: width of the encoder, t: tokens of text, n: positions of the encoder
    s: samples, f: mel bands, c, y, x: image channels, height, width
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plaudit_models.spec import AudioModality, Modality
from plaudit_models.training.encoders.config import ENCODER_KINDS, EncoderConfig, UnusableEncoder

WHISPER_RATE_HZ: Final = 16_000
_WHISPER_WINDOW: Final = 400
_WHISPER_HOP: Final = 160
_WHISPER_STEP_SAMPLES: Final = 2 * _WHISPER_HOP
_MASKED: Final = -1e9
_TINY_VARIANCE: Final = 1e-6
"""Variance that is added before its root is taken, whose gradient at 0 has no bound."""


class EncoderNetwork(nn.Module, ABC):
    """Content of one modality → positions.

    Attributes:
        network: module of transformers.
        positions: p.
        width: h.
        chunk_rows: rows that may be encoded at once, for the sake of memory.
    """

    network: nn.Module
    positions: int
    width: int
    chunk_rows: int = 32

    @abstractmethod
    def forward(self, content: Tensor) -> Tensor:
        """Positions of a batch of items, ``[b, p, h]``."""

    def encode_pool(self, pool: Tensor) -> Tensor:
        """Positions of many items, ``[u, p, h]``, in chunks."""
        return torch.cat([self(chunk) for chunk in pool.split(self.chunk_rows)])


def build_encoder(config: EncoderConfig, modality: Modality) -> EncoderNetwork:
    """Network with random weights, in eval mode.

    Raises:
        UnusableEncoder: transformers is not installed.
    """
    network = _module(config.kind, dict(config.network))
    kind = ENCODER_KINDS[config.kind]
    built: EncoderNetwork
    if kind == "text":
        built = TextNetwork(network, config)
    elif kind == "image":
        built = ImageNetwork(network, config)
    else:
        assert isinstance(modality, AudioModality)
        if config.kind == "whisper":
            built = WhisperNetwork(network, config, modality.max_samples)
        else:
            built = WaveformNetwork(network, config)
    return built.eval()


def transformers_library() -> Any:
    """The library transformers. Raises UnusableEncoder if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UnusableEncoder(
            f"a pretrained encoder needs transformers in training ({error}); install the extra `encoders`"
        ) from error
    return transformers


def network_class(kind: str) -> Any:
    """Class of transformers that a kind of encoder is loaded with."""
    names = {
        "bert": "BertModel",
        "clip_vision_model": "CLIPVisionModel",
        "dinov2": "Dinov2Model",
        "distilbert": "DistilBertModel",
        "hubert": "HubertModel",
        "mpnet": "MPNetModel",
        "roberta": "RobertaModel",
        "siglip_vision_model": "SiglipVisionModel",
        "vit": "ViTModel",
        "wav2vec2": "Wav2Vec2Model",
        "whisper": "WhisperModel",
        "xlm-roberta": "XLMRobertaModel",
    }
    return getattr(transformers_library(), names[kind])


def without_pooler(kind: str) -> dict[str, Any]:
    """Arguments of :func:`network_class` that leave out layers which are not used."""
    return {"add_pooling_layer": False} if kind in ("bert", "mpnet", "roberta", "vit", "xlm-roberta") else {}


def encoder_of(kind: str, network: nn.Module) -> nn.Module:
    """Part of the loaded network that is kept."""
    if kind == "whisper":
        kept: nn.Module = network.get_encoder()  # type: ignore[operator]
        return kept
    if kind in ("wav2vec2", "hubert"):
        # Weight normalisation would be computed at every call.
        convolution = network.encoder.pos_conv_embed.conv  # type: ignore[union-attr]
        if parametrize.is_parametrized(convolution, "weight"):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(convolution, "weight")  # type: ignore[arg-type]
    return network


def _module(kind: str, network: dict[str, Any]) -> nn.Module:
    transformers = transformers_library()
    config = transformers.AutoConfig.for_model(kind, **{key: v for key, v in network.items() if key != "model_type"})
    config._attn_implementation = "eager"  # the one whose graph is the same for every length
    return encoder_of(kind, network_class(kind)(config, **without_pooler(kind)))


class TextNetwork(EncoderNetwork):
    """Token ids ``[b, t]``, 0 is padding → their mean and the first token's state, ``[b, 2, h]``.

    The tokens that begin and end a text are put around the others here, so that those which travel are of the text
    alone. The mean is that over all tokens, those two included, as in sentence-transformers (Reimers and Gurevych
    2019, "Sentence-BERT", section 3).
    """

    def __init__(self, network: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.network = network
        self.positions, self.width = 2, network.config.hidden_size  # type: ignore[union-attr, assignment]
        self.begin, self.end, self.padding = (int(config.inputs[name]) for name in ("bos", "eos", "padding"))
        self.chunk_rows = 64

    def forward(self, content: Tensor) -> Tensor:
        t = content.shape[1]
        place = torch.arange(t + 2)
        given = content > 0
        last = (given * place[1:-1]).amax(dim=1, keepdim=True)  # 0 where there is no token
        around = nn.functional.pad(torch.where(given, content, self.padding), (1, 1), value=self.padding)
        ids = torch.where(place == 0, self.begin, torch.where(place == last + 1, self.end, around))
        valid = nn.functional.pad(given, (1, 1)) | (place == 0) | (place == last + 1)
        mask = (1.0 - valid[:, None, None, :].float()) * _MASKED
        states = self.network(input_ids=ids, attention_mask=mask.expand(-1, -1, t + 2, -1)).last_hidden_state
        weight = valid[:, :, None].float()
        mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
        return torch.stack([mean, states[:, 0]], dim=1)

    def encode_pool(self, pool: Tensor) -> Tensor:
        """As the base class; texts of like length stand together, and no chunk is longer than its longest text."""
        length = ((pool > 0) * torch.arange(1, pool.shape[1] + 1)).amax(dim=1)
        order = torch.argsort(length, stable=True)
        made = [self(pool[rows, : max(1, int(length[rows[-1]]))]) for rows in order.split(self.chunk_rows)]
        return torch.cat(made)[torch.argsort(order)]


class ImageNetwork(EncoderNetwork):
    """Image ``[b, c, y, x]`` in [0, 1] → the encoder's own summary and the mean of its patches, ``[b, 2, h]``."""

    def __init__(self, network: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.network = network
        self.positions, self.width = 2, network.config.hidden_size  # type: ignore[union-attr, assignment]
        self.kind = config.kind
        for name in ("mean", "std"):
            self.register_buffer(
                f"channel_{name}", torch.tensor(config.inputs[name])[None, :, None, None], persistent=False
            )
        self.channel_mean: Tensor
        self.channel_std: Tensor

    def forward(self, content: Tensor) -> Tensor:
        output = self.network(pixel_values=(content - self.channel_mean) / self.channel_std)
        states = output.last_hidden_state
        if self.kind == "siglip_vision_model":
            return torch.stack([output.pooler_output, states.mean(dim=1)], dim=1)
        summary = states[:, 0] if self.kind == "vit" else output.pooler_output
        return torch.stack([summary, states[:, 1:].mean(dim=1)], dim=1)


class WaveformNetwork(EncoderNetwork):
    """Waveform ``[b, s]``, zero at the end where nothing was heard → mean and deviation over time,
    ``[b, 2, h]``."""

    def __init__(self, network: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.network = network
        self.positions, self.width = 2, network.config.hidden_size  # type: ignore[union-attr, assignment]
        self.normalized = bool(config.inputs["normalized"])
        self.masked = bool(config.inputs["masked"])
        self.step = int(np.prod(network.config.conv_stride))  # type: ignore[union-attr, arg-type]
        self.chunk_rows = 8

    def forward(self, content: Tensor) -> Tensor:
        samples = heard_samples(content)
        valid = torch.arange(content.shape[1]) < samples
        if self.normalized:  # as Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm
            mean = content.sum(dim=1, keepdim=True) / samples
            centred = torch.where(valid, content - mean, 0.0)
            content = centred / torch.sqrt((centred * centred).sum(dim=1, keepdim=True) / samples + 1e-7)
        states = self.network(content, attention_mask=valid.long() if self.masked else None).last_hidden_state
        return statistics_over_time(states, samples / self.step)


class WhisperNetwork(EncoderNetwork):
    """Waveform ``[b, s]`` at 16 kHz → mean and deviation over time of the Whisper encoder's states,
    ``[b, 2, h]``.

    The window is as long as the modality and not 30 s: the encoder's first positions are kept. The log-mel spectrogram
    is that of transformers' WhisperFeatureExtractor; its Fourier transform is in double precision, since the quietest
    bands are 80 dB below the loudest.
    """

    def __init__(self, network: nn.Module, config: EncoderConfig, max_samples: int) -> None:
        super().__init__()
        self.network = network
        self.positions, self.width = 2, network.config.d_model  # type: ignore[union-attr, assignment]
        self.frames = 2 * -(-max_samples // _WHISPER_STEP_SAMPLES)
        shorten_whisper(network, self.frames // 2)
        self.chunk_rows = 8
        window = torch.hann_window(_WHISPER_WINDOW, periodic=True, dtype=torch.float64)
        bins = torch.arange(_WHISPER_WINDOW // 2 + 1, dtype=torch.float64)[:, None]
        phase = 2 * torch.pi * bins * torch.arange(_WHISPER_WINDOW, dtype=torch.float64) / _WHISPER_WINDOW
        fourier = torch.cat([phase.cos() * window, phase.sin() * window]).T  # [window, 2·bins]
        self.register_buffer("fourier", fourier, persistent=False)
        mel = transformers_library().audio_utils.mel_filter_bank(
            num_frequency_bins=len(bins),
            num_mel_filters=network.config.num_mel_bins,  # type: ignore[union-attr]
            min_frequency=0.0,
            max_frequency=WHISPER_RATE_HZ / 2,
            sampling_rate=WHISPER_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )  # [bins, f]
        self.register_buffer("mel", torch.from_numpy(np.concatenate([mel, mel])), persistent=False)
        starts = torch.arange(self.frames)[:, None] * _WHISPER_HOP
        self.register_buffer("at", starts + torch.arange(_WHISPER_WINDOW), persistent=False)  # [frames, window]
        self.fourier: Tensor
        self.mel: Tensor
        self.at: Tensor

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Spectrogram ``[b, f, frames]`` as WhisperFeatureExtractor makes it of a window of that length."""
        padded = nn.functional.pad(waveform, (0, self.frames * _WHISPER_HOP - waveform.shape[1])).double()
        half = _WHISPER_WINDOW // 2
        # Reflected at both ends, as numpy and librosa do.
        mirrored = torch.cat([padded[:, 1 : half + 1].flip(1), padded, padded[:, -half - 1 : -1].flip(1)], dim=1)
        spectrum = mirrored[:, self.at] @ self.fourier  # [b, frames, 2·bins]
        log_mel = torch.log10(((spectrum * spectrum) @ self.mel).clamp_min(1e-10)).float()
        loudest = log_mel.amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0).transpose(1, 2)

    def forward(self, content: Tensor) -> Tensor:
        states = self.network(self.log_mel(content)).last_hidden_state
        return statistics_over_time(states, heard_samples(content) / _WHISPER_STEP_SAMPLES)


def shorten_whisper(encoder: nn.Module, positions: int) -> None:
    """Keep the first positions of a Whisper encoder, in place; more than it has are refused when a folder is read."""
    config: Any = encoder.config
    config.max_source_positions = positions
    encoder.max_source_positions = positions  # type: ignore[assignment]
    kept = nn.Embedding(positions, config.d_model)
    with torch.no_grad():
        kept.weight.copy_(encoder.embed_positions.weight[:positions])  # type: ignore[union-attr, index]
    encoder.embed_positions = kept.requires_grad_(False)


def heard_samples(waveform: Tensor) -> Tensor:
    """Samples up to the last that is not zero, 1 at least, ``[b, 1]``, of waveforms ``[b, s]``."""
    place = torch.arange(1, waveform.shape[1] + 1)
    return ((waveform != 0) * place).amax(dim=1, keepdim=True).clamp_min(1)


def statistics_over_time(states: Tensor, heard: Tensor) -> Tensor:
    """Mean and standard deviation over the time that was heard, ``[b, 2, h]``.

    Statistics pooling (Snyder et al. 2017, "Deep Neural Network Embeddings for Text-Independent Speaker Verification",
    section 3.1). What was said is known by either, when it was said by neither: with few rows to learn from, states at
    each part of a sound told less.

    Args:
        states: ``[b, n, h]``.
        heard: of the n, how many were heard, ``[b, 1]``, with fractions; at least one counts.
    """
    n = states.shape[1]
    heard = heard.clamp(1.0, float(n))
    weight = ((heard - torch.arange(n)).clamp(0.0, 1.0) / heard)[:, :, None]  # [b, n, 1]
    mean = (states * weight).sum(dim=1)
    centred = states - mean[:, None, :]
    deviation = torch.sqrt((centred * centred * weight).sum(dim=1) + _TINY_VARIANCE)
    return torch.stack([mean, deviation], dim=1)
