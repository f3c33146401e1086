"""Loss of a policy that scores text: labelled rows become choices between texts, one for each action.

Knows nothing about optimisers, files or tokenizers.

Notation:
    b: rows of a batch, d: embedding size, a: number of actions, t: tokens of a text
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from plaudit_models.data.labelled import MISSING, LabelledData
from plaudit_models.training.losses import action_nll
from plaudit_models.training.networks.fusion import FusionPolicy


class ActionTexts:
    """Texts of every action: its name, and the wordings that are labelled with it.

    Args:
        model: a policy that scores text.
        data: labelled rows, whose texts are the wordings.
    """

    def __init__(self, model: FusionPolicy, data: LabelledData) -> None:
        assert model.text_scorer is not None
        name, _ = data.spec.dynamic_action_modality
        self._model = model
        self._names = model.text_scorer.action_texts
        self._wordings = torch.from_numpy(data.pools[name])
        item = torch.from_numpy(data.index[:, list(data.spec.modalities).index(name)])
        action = torch.from_numpy(data.action)
        with_text = torch.nonzero(item != MISSING)[:, 0]
        order = with_text[torch.argsort(action[with_text], stable=True)]
        self._item = item[order]
        self._count = torch.bincount(action[order], minlength=len(data.spec.actions))
        self._first = torch.cumsum(self._count, 0) - self._count

    def loss(self, embedding: Tensor, action: Tensor, step: int, generator: Generator) -> Tensor:
        """−log P(action | x) between the texts of all actions, the mean over the rows.

        Args:
            embedding: ``[b, d]``.
            action: int64 ``[b]``, the right one.
            step: even steps take the names of the actions as texts, odd ones wordings from the data.
        """
        texts = self._names if step % 2 == 0 else self._sampled_wordings(generator)
        return action_nll(embedding @ self._model.text_vectors(texts).T, action).mean()

    def _sampled_wordings(self, generator: Generator) -> Tensor:
        """Wording for each action, ``[a, t]``; its name where the data has none."""
        draw = (torch.rand(len(self._count), generator=generator) * self._count).long()
        known = self._count > 0
        texts = self._names.clone()
        texts[known] = self._wordings[self._item[(self._first + draw)[known]]]
        return texts
