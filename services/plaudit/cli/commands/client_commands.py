"""A client from the shell: ask for an action, give feedback, look up a receipt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plaudit.cli import output
from plaudit.cli.failures import CommandFailed
from plaudit.cli.options import ServedModelOptions, ServerOptions, expand_options
from plaudit.client import Client, feedback
from plaudit.client.content import audio as audio_content
from plaudit.client.content import image as image_content
from plaudit.client.content import to_content
from plaudit.client.errors import ClientError
from plaudit.v1.content_pb2 import Content

app = typer.Typer()


@app.command()
@expand_options
def predict(
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image, for the model's image modality.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE", help="A sound, for its audio modality.")] = None,
    text: Annotated[str | None, typer.Option(help="Text, for its text modality.")] = None,
    content: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any modality by name: text, or `@FILE` for an image, a sound or a `.npy` tensor. Repeatable.",
        ),
    ] = None,
    user: Annotated[str, typer.Option(help="Id of the user who asks.")] = "",
    user_group: Annotated[
        str, typer.Option(metavar="LABEL", help="A group the user belongs to, such as `premium`.")
    ] = "",
    allow: Annotated[
        list[str] | None, typer.Option(metavar="ACTION", help="Pick only among these. Repeatable; by default all.")
    ] = None,
    dynamic_action: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=TEXT",
            help="Pick among these instead of the model's actions, scored by their texts. Repeatable.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Pick the most probable action instead of sampling.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=0, help="Number of actions to list; 0 is all.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each modality contributed.")] = False,
    request_id: Annotated[str, typer.Option(help="Comes back unchanged and appears in the server's logs.")] = "",
    *,
    options: ServedModelOptions,
) -> None:
    """Ask a running server for an action.

    Example: `plaudit predict --image cat.png --text "what is this?" --user ada`; by name:
    `plaudit predict --content left=@left.jpg --content right=@right.jpg --content radar=@radar.npy`; among actions of
    the request's own:
    `plaudit predict --text "my card is gone" --dynamic-action block="block a card" --dynamic-action pin="change a PIN"`
    """
    parts = _named_content(content or [])
    dynamic_actions = _dynamic_actions(dynamic_action or [])
    by_kind = {kind: part for kind, part in (("image", image), ("audio", audio), ("text", text)) if part is not None}
    with options.client() as client:
        if by_kind:
            spec = _live_spec(client, options.model)
            for kind, part in by_kind.items():
                _add(parts, _modality_of_kind(spec, kind), _of_kind(kind, part), f"--{kind}")
        prediction = client.predict(
            parts,
            user_id=user,
            allowed_actions=allow or None,
            dynamic_actions=dynamic_actions or None,
            greedy=greedy,
            top_k=top_k,
            explain=explain,
            request_id=request_id,
            model=options.model,
            user_group=user_group,
        )
    options.show(prediction, output.print_prediction)


@app.command(name="feedback")
@expand_options
def send_feedback(
    prediction_id: Annotated[str, typer.Argument(help="From `plaudit predict`.")],
    up: Annotated[bool, typer.Option("--up", help="A thumb up.")] = False,
    down: Annotated[bool, typer.Option("--down", help="A thumb down.")] = False,
    rating: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="How good the answer was.")] = None,
    correct: Annotated[
        str | None, typer.Option(metavar="ACTION", help="The action that would have been right.")
    ] = None,
    prefer: Annotated[
        tuple[str, str] | None, typer.Option(metavar="BETTER WORSE", help="One action is better than another.")
    ] = None,
    implicit: Annotated[
        str | None, typer.Option(metavar="KIND", help="What the user did: `rephrased`, `interrupted` or `accepted`.")
    ] = None,
    retract: Annotated[str | None, typer.Option(metavar="FEEDBACK_ID", help="Retract this feedback.")] = None,
    retract_all: Annotated[
        bool, typer.Option("--retract-all", help="Retract all of the user's feedback on the prediction.")
    ] = False,
    user: Annotated[str, typer.Option(help="Id of the user whose feedback it is.")] = "",
    feedback_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Idempotency key; by default a fresh one.")
    ] = None,
    *,
    options: ServerOptions,
) -> None:
    """Say how good an answer was. Returns when the feedback is durable.

    Example: `plaudit feedback PREDICTION_ID --up --user ada`
    """
    keywords: feedback.FeedbackOptions = {"user_id": user}
    if feedback_id is not None:
        keywords["feedback_id"] = feedback_id
    given = []
    if up:
        given.append(feedback.thumbs_up(prediction_id, **keywords))
    if down:
        given.append(feedback.thumbs_down(prediction_id, **keywords))
    if rating is not None:
        given.append(feedback.rate(prediction_id, rating, **keywords))
    if correct is not None:
        given.append(feedback.correct(prediction_id, correct, **keywords))
    if prefer is not None:
        given.append(feedback.prefer(prediction_id, *prefer, **keywords))
    if implicit is not None:
        given.append(_implicit(prediction_id, implicit, keywords))
    if retract is not None or retract_all:
        given.append(feedback.retract(prediction_id, retract or "", **keywords))
    if len(given) != 1:
        raise typer.BadParameter(
            f"{len(given)} signals given; give one of --up, --down, --rating, --correct, --prefer, --implicit, "
            "--retract, --retract-all"
        )
    with options.client() as client:
        options.show(client.send_feedback(given[0]), output.print_acknowledgement)


@app.command()
@expand_options
def receipt(
    feedback_id: Annotated[str, typer.Argument(metavar="ID", help="A feedback id.")], *, options: ServerOptions
) -> None:
    """Say what became of a piece of feedback: recorded, joined, used in which version, live since when.

    Example: `plaudit receipt 1b4e28ba-2fa1-11d2-883f-0016d3cca427`
    """
    with options.client() as client:
        options.show(client.receipt(feedback_id), output.print_receipt)


def _named_content(named: Sequence[str]) -> dict[str, Content]:
    """Content by modality name from ``NAME=VALUE``; BadParameter (exit code 2) where it cannot be read."""
    parts: dict[str, Content] = {}
    for item in named:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--content")
        part = _file(Path(value[1:])) if value.startswith("@") else value
        _add(parts, name, part, "--content")
    return parts


def _dynamic_actions(given: Sequence[str]) -> dict[str, str]:
    """Text by id from ``ID=TEXT``; BadParameter where it cannot be read."""
    texts: dict[str, str] = {}
    for item in given:
        id_, separator, text = item.partition("=")
        if not (id_ and separator):
            raise typer.BadParameter(f"{item!r} is not ID=TEXT", param_hint="--dynamic-action")
        if id_ in texts:
            raise typer.BadParameter(f"the id {id_!r} is given twice", param_hint="--dynamic-action")
        texts[id_] = text
    return texts


def _add(parts: dict[str, Content], name: str, part: Any, option: str) -> None:
    if name in parts:
        raise typer.BadParameter(f"the modality {name!r} is given twice", param_hint=option)
    try:
        parts[name] = to_content(name, part)
    except ClientError as error:
        raise typer.BadParameter(error.message, param_hint=option) from error


def _modality_of_kind(spec: Mapping[str, Any], kind: str) -> str:
    """Name of the only modality of ``kind``; BadParameter if there is none or more than one."""
    kinds: dict[str, str] = {name: fields["kind"] for name, fields in spec["modalities"].items()}
    names = [name for name, its_kind in kinds.items() if its_kind == kind]
    if len(names) != 1:
        listed = ", ".join(f"{name} ({its_kind})" for name, its_kind in kinds.items())
        raise typer.BadParameter(
            f"the model has {len(names)} modalities of kind {kind}, so name one with --content NAME=VALUE; "
            f"its modalities are {listed}",
            param_hint=f"--{kind}",
        )
    return names[0]


def _live_spec(client: Client, model: str) -> Mapping[str, Any]:
    """Model spec in the manifest of the live version."""
    rollout = next(client.watch_versions(model=model, timeout_s=10.0))
    if rollout.live is None:
        raise CommandFailed(f"model {rollout.model!r} has no live version yet; `plaudit pretrain` makes the first")
    spec: Mapping[str, Any] = client.version(rollout.live, model=model).manifest["spec"]
    return spec


def _of_kind(kind: str, part: Path | str) -> Content | str:
    """Content of the kind that an option states, whatever the file looks like: the server can say what is wrong."""
    if isinstance(part, str):
        return part
    try:
        return image_content(part) if kind == "image" else audio_content(part)
    except ClientError as error:
        raise typer.BadParameter(error.message, param_hint=f"--{kind}") from error


def _file(path: Path) -> Any:
    """Tensor for ``.npy``; otherwise the path, to be told apart by its first bytes."""
    if path.suffix != ".npy":
        return path
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:  # numpy allocates what the header says
        raise typer.BadParameter(f"{path} is not a readable .npy file ({error})", param_hint="--content") from error


def _implicit(prediction_id: str, kind: str, keywords: feedback.FeedbackOptions) -> feedback.Feedback:
    try:
        return feedback.implicit(prediction_id, kind, **keywords)  # type: ignore[arg-type]  # it checks the kind itself
    except ClientError as error:
        raise typer.BadParameter(error.message, param_hint="--implicit") from error
