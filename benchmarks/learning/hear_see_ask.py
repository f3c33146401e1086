"""hear-see-ask, the demo's task, on the whole loop: pre-trained on four labelled kinds of question, then thumbs alone.

(a) for sums, users like only the last digit; (b) a kind of question that was never labelled is 30 % of the traffic:
"which is smaller", whose answers the model knows from other kinds, and "how far apart", whose answers it does not.
Every answer is drawn from a version that the learner put in place, and every version that answered a request is judged
on held-out images, voices and wordings with exactly the probabilities it served.

Pre-training ends by steps and fine-tuning by replays, never by the clock, so the numbers do not depend on the machine.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from benchmarks.learning.over_grpc import serve_stream
from benchmarks.learning.whole_loop import loop_settings, whole_loop
from benchmarks.measure import Curve, Measure
from plaudit.compose.learner import pretrain_config
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import model_runtime
from plaudit.core.events import Content, Decision, EncodedContent, TextContent
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Change, promote
from plaudit.core.settings import Settings
from plaudit.demo.held_out import evaluate_versions
from plaudit.demo.report import SHIFTED_KIND, UNCHANGED_KINDS, Satisfaction, first_answers, version_after, worst_drop
from plaudit.demo.task import (
    HARD_KIND,
    LABELLED_KINDS,
    NEW_KIND,
    SPEC,
    Example,
    Kind,
    Pool,
    collect,
    evaluation_examples,
    write_data_folder,
)
from plaudit.demo.users import Request, likes, thumb_up, traffic
from plaudit.learner.finetuning.pretraining import pretrain_and_publish

CHUNK: Final = 64
"""Requests between two steps of the learner: its default batch."""
RECENT: Final = 1_000
"""Thumbs over which satisfaction on the traffic is averaged."""
SECTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    # No power to lose here, and no clock.
    "log": {"synchronous": "NORMAL"},
    "learner": {"max_wait_s": 1e9, "unused_versions_kept": 1_000_000},
    # Small steps, as in the demo; and where the log holds too little evidence at the first look, half of the users try
    # the candidate. All else is the default.
    "policy": {"max_kl": 0.03},
    "gate": {"max_events": 100},
    "canary": {"share": 0.5, "max_events": 1500},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one run: blocks of labelled rows and passes over them, thumbs of the streams and between fine-tuning
    jobs, held-out examples a kind.
    """

    train_blocks: int
    epochs: int
    thumbs: Mapping[Kind, int]
    grpc_thumbs: int
    every: int
    per_kind: int


FULL: Final = Sizes(
    train_blocks=640,
    epochs=3,
    thumbs={NEW_KIND: 5_000, HARD_KIND: 10_000},
    grpc_thumbs=4_000,
    every=Settings().finetune.every,
    per_kind=300,
)
QUICK: Final = Sizes(
    train_blocks=40, epochs=1, thumbs={NEW_KIND: 640, HARD_KIND: 640}, grpc_thumbs=320, every=256, per_kind=50
)


@dataclass(frozen=True, slots=True)
class Observed:
    """Results of a stream.

    Attributes:
        liked: per thumb, the kind asked for and whether the user liked the answer.
        live: number of thumbs and live version after each chunk.
        judged: version → satisfaction on held-out inputs, of every version that answered and of the first.
        outcomes: of the fine-tuning jobs.
    """

    liked: Sequence[tuple[Kind, bool]]
    live: Sequence[tuple[int, int]]
    judged: Mapping[int, Satisfaction]
    outcomes: Sequence[str]

    def after(self, kind: Kind, thumbs: int) -> float:
        """Held-out satisfaction of what is live after so many thumbs, NaN if the stream is shorter."""
        version = next((version for n, version in reversed(self.live) if n <= thumbs), None)
        return float("nan") if version is None or self.live[-1][0] < thumbs else self.judged[version][kind]

    def on_traffic(self, kind: Kind, thumbs: int) -> float:
        recent = [liked for asked, liked in self.liked[max(0, thumbs - RECENT) : thumbs] if asked == kind]
        return float(np.mean(recent)) if recent else float("nan")

    def curve(self, kind: Kind) -> Curve:
        return Curve(
            tuple(float(n) for n, _ in self.live),
            tuple(self.judged[version][kind] for _, version in self.live),
            "thumbs",
            "held-out satisfaction",
        )


def run(shuffles: int, quick: bool) -> list[Measure]:
    """One shuffle: a version 1 costs two minutes. The two streams run at once, one core each."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="plaudit-hear-see-ask-") as folder:
        first, labelled = pretrained(Path(folder), sizes)
        sections = {
            **SECTIONS,
            "finetune": {"objective": "target", "every": sizes.every, "rehearsal": str(labelled), "seed": 0},
        }
        with ProcessPoolExecutor(len(sizes.thumbs), mp_context=get_context("spawn")) as pool:
            streams = {
                kind: pool.submit(
                    observe, Path(folder) / kind, first, kind, thumbs, sections, per_kind=sizes.per_kind, seed=0
                )
                for kind, thumbs in sizes.thumbs.items()
            }
            found = measures({kind: stream.result() for kind, stream in streams.items()})
        return found + over_grpc(Path(folder) / "grpc", first, sections, sizes)


def measures(seen: Mapping[Kind, Observed]) -> list[Measure]:
    smaller, apart = seen[NEW_KIND], seen[HARD_KIND]
    found = []
    for observed, kind, thumbs, goal, name in (
        (smaller, SHIFTED_KIND, 4_000, 0.82, "(a) sums, last digit only"),
        (smaller, NEW_KIND, 5_000, 0.85, '(b) "smaller", never labelled'),
        (apart, HARD_KIND, 10_000, 0.60, '(b) "how far apart", never labelled'),
    ):
        first, at = observed.judged[min(observed.judged)][kind], min(thumbs, observed.live[-1][0])
        note = f"held out; {first:.3f} at first; {observed.on_traffic(kind, at):.3f} of the {RECENT} thumbs before"
        found.append(
            Measure(
                f"{name}, after {at} thumbs", observed.after(kind, at), goal, "at_least", note, observed.curve(kind)
            )
        )
    for kind, observed in seen.items():
        points, version, which = worst_drop(observed.judged, min(observed.judged))
        note = f"in points; {which} in version {version} of {len(observed.judged)}; {', '.join(UNCHANGED_KINDS)}"
        found.append(Measure(f"{kind}: largest drop of an unchanged kind", points, 1.0, "at_most", note))
        note = ", ".join(observed.outcomes)
        found.append(Measure(f"{kind}: fine-tuned versions promoted", observed.outcomes.count("promote"), note=note))
    return found


def over_grpc(folder: Path, first: Path, sections: Mapping[str, Mapping[str, Any]], sizes: Sizes) -> list[Measure]:
    """The stream of (a) once more, through `plaudit up` and the client."""
    served = serve_stream(
        folder,
        lambda registry: _begin_with(registry, first),
        NEW_KIND,
        sizes.grpc_thumbs,
        seed=0,
        sections=sections,
    )
    versions = {1, *first_answers(served.answers)}
    judged = _judged(served.registry, served.settings, versions, NEW_KIND, sizes.per_kind, 0)
    thumbs = len(served.answers)
    after = judged[version_after(served.answers, thumbs)]
    points, version, which = worst_drop(judged, 1)
    note = f"held out; {judged[1][SHIFTED_KIND]:.3f} at first; {thumbs / served.duration_s:.0f} thumbs/s"
    return [
        Measure(f"over gRPC: (a) after {thumbs} thumbs", after[SHIFTED_KIND], 0.82, "at_least", note),
        Measure(
            f'over gRPC: "smaller" after {thumbs} thumbs', after[NEW_KIND], note=f"{judged[1][NEW_KIND]:.3f} at first"
        ),
        Measure(
            "over gRPC: largest drop of an unchanged kind",
            points,
            1.0,
            "at_most",
            f"in points; {which} in version {version} of {len(judged)}",
        ),
        Measure("over gRPC: failed requests", float(len(served.failures)), 0.0, "at_most", f"of {2 * thumbs}"),
    ]


def pretrained(folder: Path, sizes: Sizes) -> tuple[Path, Path]:
    """The folder of version 1, and the labelled data it was taught."""
    labelled = folder / "labelled"
    write_data_folder(labelled, seed=0, train_blocks=sizes.train_blocks)
    settings = loop_settings(folder / "pretrained", SPEC.to_dict(), {})
    registry = model_registry(settings)
    published = pretrain_and_publish(
        labelled,
        settings.spec(),
        registry,
        now_s=0.0,
        floor=settings.policy.floor,
        config=replace(pretrain_config(settings), max_duration_s=86_400.0, max_epochs=sizes.epochs),
        threads=settings.pretrain.threads,
    )
    return registry.folder(published.manifest.version), labelled


def observe(
    folder: Path,
    first: Path,
    new_kind: Kind,
    thumbs: int,
    sections: Mapping[str, Mapping[str, Any]],
    *,
    per_kind: int,
    seed: int,
) -> Observed:
    """Serve one stream, and evaluate the versions that served.

    Args:
        folder: made; everything is in it.
        first: the folder of version 1.
        new_kind: what 30 % of the traffic asks for.
        sections: of `plaudit.toml`.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = loop_settings(folder, SPEC.to_dict(), sections)
    registry = model_registry(settings)
    _begin_with(registry, first)
    liked: list[tuple[Kind, bool]] = []
    live: list[tuple[int, int]] = []
    answered = {registry.rollout().live or 0}
    with whole_loop(settings, chunk=CHUNK, seed=seed) as loop:
        requests = traffic(collect("traffic", seed), seed=seed, new_kind=new_kind)
        for start in range(0, thumbs, CHUNK):
            asked = list(itertools.islice(requests, min(CHUNK, thumbs - start)))
            decisions = loop.ask([(request.user_id, contents(request.example)) for request in asked])
            liked += [_liked(r, d) for r, d in zip(asked, decisions, strict=True)]
            answered |= {decision.version for decision in decisions}
            loop.observe(
                decisions, [thumb_up(r, d.action, shifted=True) for r, d in zip(asked, decisions, strict=True)]
            )
            live.append((len(liked), loop.live))
        outcomes = [str(each["outcome"]) for each in loop.learner.report()["finetune"]["outcomes"]]
    answered |= {version for _, version in live}
    return Observed(liked, live, _judged(registry, settings, answered, new_kind, per_kind, seed), outcomes)


def contents(example: Example) -> dict[str, Content]:
    return {
        "image": EncodedContent("image", example.image),
        "audio": EncodedContent("audio", example.audio),
        "question": TextContent(example.question),
    }


def _begin_with(registry: ModelRegistry, first: Path) -> None:
    version = registry.publish(first).version
    registry.set_rollout(promote(registry.rollout(), version, Change("benchmark", 0.0, "the first version")))


def _liked(request: Request, decision: Decision) -> tuple[Kind, bool]:
    return request.example.kind, likes(request.example, decision.action, shifted=True)


def _judged(
    registry: ModelRegistry, settings: Settings, versions: set[int], new_kind: Kind, per_kind: int, seed: int
) -> Mapping[int, Satisfaction]:
    test: Pool = collect("test", seed)
    examples = evaluation_examples(test, per_kind=per_kind, seed=seed, kinds=(*LABELLED_KINDS, new_kind))
    return evaluate_versions(registry.folder, model_runtime(settings), sorted(versions), examples)
