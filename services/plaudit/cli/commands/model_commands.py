"""Commands that make versions: from an ONNX file, from labelled data, from feedback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli import output
from plaudit.cli.failures import needs_extra
from plaudit.cli.options import CommonOptions, ModelOptions, expand_options

app = typer.Typer()


@app.command("import")
@expand_options
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="A graph whose inputs are tensors with a batch axis.")
    ],
    name: Annotated[str, typer.Option(help="What the model is called in requests.")],
    logits: Annotated[
        str, typer.Option(help="The output that scores the actions; may be left out if just one can.")
    ] = "",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="That output holds probabilities, not logits.")
    ] = False,
    embedding: Annotated[
        str, typer.Option(help="The output that holds the embedding; by default the logits stand in for it.")
    ] = "",
    actions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the actions, one a line; by default 0, 1, 2, …")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Inputs to record and prove by; by default made up.")
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Go live even if another version is live.")] = False,
    max_length: Annotated[
        int, typer.Option(min=1, metavar="N", help="The longest free length that a request may choose.")
    ] = 4096,
    time_limit: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="The longest that running it may take.")
    ] = 60.0,
    memory_limit: Annotated[
        float, typer.Option(min=0.1, metavar="GIB", help="The most memory that it may take, beside the file.")
    ] = 2.0,
    *,
    common: CommonOptions,
) -> None:
    """Turn an ONNX file into a version of a model, to be served and to learn; a model's first version goes live.

    Example: `plaudit import resnet.onnx --name pets --logits logits --actions breeds.txt`
    """
    settings = common.settings()
    with needs_extra("serve"):
        from plaudit.cli.commands import importing

        request = importing.ImportRequest(
            file=file,
            name=name,
            logits=logits,
            embedding=embedding,
            probabilities=probabilities,
            actions=importing.read_actions(actions),
            golden=golden,
            max_length=max_length,
            memory_bytes=round(memory_limit * 2**30),
            time_s=time_limit,
        )
        imported = importing.import_model(settings, request, go_live=promote)
    manifest = imported.manifest
    if common.as_json:
        facts = {
            "model": name,
            "version": manifest.version,
            "digest": manifest.digest,
            "live": imported.live,
            "notes": list(imported.notes),
        }
        output.print_json(facts)
    else:
        for note in imported.notes:
            output.err.print(note)
        output.out.print(
            f"version {manifest.version} of {name!r} is published{' and live' if imported.live else ''}: "
            f"{len(manifest.spec.actions)} actions, inputs {', '.join(manifest.spec.modalities)}"
        )


@app.command()
@expand_options
def pretrain(
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="Labelled data: a manifest.csv and the files it names.")],
    *,
    common: CommonOptions,
) -> None:
    """Train the model on labelled data and publish it; it goes live if no version is.

    Example: `plaudit pretrain --data animals/` with `animals/manifest.csv` beginning
    `split,action,image,text` and `train,cat,photos/1.png,"what is it?"`
    """
    settings = common.settings()
    with needs_extra("learn"):
        from plaudit.cli.commands import pretrain as body
    published = body.pretrain(settings, data)
    output.print_json(body.summary(published)) if common.as_json else body.show(published)


@app.command()
@expand_options
def finetune(
    reason: Annotated[str, typer.Option("--reason", help="Why, in one sentence; kept with the version.")] = "",
    *,
    options: ModelOptions,
) -> None:
    """Run one fine-tuning job on all feedback so far, and publish what it made; it serves only once you promote it.

    Example: `plaudit finetune --reason "before the audit"`, then `plaudit promote N`
    """
    settings = options.settings()
    with needs_extra("learn"):
        from plaudit.cli.commands import finetune as body
        from plaudit.compose.registry import resolve_model

        manifest = body.finetune(settings, resolve_model(settings, options.model), reason)
    if options.as_json:
        output.print_json(json.loads(manifest.to_json()))
    else:
        number = manifest.version
        output.out.print(f"version {number} is published; to make it live: plaudit promote {number}")
