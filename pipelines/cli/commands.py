"""The table of the commands of `enigma`; each imports what it needs when it runs."""

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from enigma.generation import Sampling
from pipelines.base.errors import UserError
from pipelines.base.run_stage import run_stage
from pipelines.registry import names as registered_models

app = typer.Typer(
    help="Register, promote and use the models that `dvc repro` makes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# Headings of the help.
MODELS = "Registered models"
USE = "The champion at work"
RUNS = "Training runs and data"


class ModelName(StrEnum):
    """The registered models, the language model first: the flow is fitted to its states."""

    LM = registered_models.LM
    FLOW = registered_models.FLOW


Model = Annotated[ModelName | None, typer.Option(help="Only this model; by default both.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]
TrustUnsigned = Annotated[
    bool,
    typer.Option(
        "--trust-unsigned", help="Accept what is older than signatures; the ledger says so."
    ),
]
Run = Annotated[
    Path | None, typer.Argument(help="Directory runs/<fingerprint>; by default the newest run.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum number of tokens to add, 1 to 1024.")]
Temperature = Annotated[
    float,
    typer.Option(help="Divides the logits, 0.01 to 10; 0 always takes the likeliest token."),
]
TopK = Annotated[
    int, typer.Option(help="Sample from this many of the likeliest tokens; 0 for all.")
]
TopP = Annotated[
    float, typer.Option(help="Sample from the fewest tokens with this probability, 0.01 to 1.")
]
Penalty = Annotated[
    float, typer.Option(help="Divides the logits of tokens that occurred, 1 (none) to 10.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text; below 2^32.")]


def main() -> None:
    """Run the command line; an error that the user can fix ends in exit code 1, no traceback."""
    run_stage(app)


@app.command(rich_help_panel=MODELS)
def register(model: Model = None, as_json: AsJson = False) -> None:
    """Register the models of the current profile, with their proof."""
    from pipelines.cli.promotion import register_models

    register_models(_chosen(model), as_json=as_json)


@app.command(rich_help_panel=MODELS)
def promote(  # noqa: PLR0917 - options go by name
    model: Model = None,
    version: Annotated[
        int | None, typer.Option(help="Version number; by default the alias `candidate`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the gates, and change nothing.")
    ] = False,
    allow_tie: Annotated[
        bool,
        typer.Option("--allow-tie", help="Accept a candidate that is not worse than the champion."),
    ] = False,
    trust_unsigned: TrustUnsigned = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if every gate passes."""
    from pipelines.cli.promotion import promote_models

    if version is not None and model is None:
        raise typer.BadParameter("--version needs --model: each model numbers its own versions")
    number = None if version is None else str(version)
    promote_models(
        _chosen(model), version=number, dry_run=dry_run, allow_tie=allow_tie,
        trust_unsigned=trust_unsigned, as_json=as_json,
    )  # fmt: skip


@app.command(rich_help_panel=MODELS)
def rollback(
    model: Annotated[ModelName, typer.Option(help="The model to roll back.")],
    to: Annotated[
        int | None, typer.Option(help="Version number; by default the previous champion.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Recorded in the ledger.")] = "rolled back by hand",
    trust_unsigned: TrustUnsigned = False,
) -> None:
    """Make an earlier champion the champion again."""
    from pipelines.registry.promote import rollback as rollback_model

    number = None if to is None else str(to)
    version = rollback_model(model.value, to=number, reason=reason, trust_unsigned=trust_unsigned)
    typer.echo(f"{model.value}: version {version} is the champion again")


@app.command(rich_help_panel=MODELS)
def history(
    model: Model = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="First set each alias to the ledger's champion.")
    ] = False,
) -> None:
    """Show every promotion and rollback; exit with 1 if an alias differs from the ledger."""
    from pipelines.cli.history import show_history

    for name in _chosen(model):
        show_history(name, restore=restore)


@app.command(rich_help_panel=MODELS)
def lineage(
    reference: Annotated[str, typer.Argument(help="enigma-lm@champion, enigma-flow/3, ...")],
) -> None:
    """Trace a version back to its raw parquet, hashing every file again."""
    from pipelines.registry.lineage import lineage as trace

    trace(reference)


@app.command(rich_help_panel=MODELS)
def verify(
    target: Annotated[
        str, typer.Argument(help="A directory, a bundle, or enigma-lm@champion, enigma-flow/3, ...")
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A public key to trust; by default yours and trusted_keys."
        ),
    ] = None,
) -> None:
    """Check a version offline: signatures, hashes, reports, causality on the weights."""
    from pipelines.cli.verify import verify_version

    verify_version(target, key or [])
    typer.echo(f"{target}: every check passes")


@app.command(rich_help_panel=MODELS)
def export(
    bundle: Annotated[Path, typer.Argument(help="The tar file to write.")],
    reference: Annotated[
        str, typer.Argument(help="enigma-lm@champion, enigma-flow/3, ...")
    ] = f"{registered_models.LM}@{registered_models.CHAMPION}",
) -> None:
    """Pack a version with its evidence into one file that strangers can verify."""
    from pipelines.cli.verify import export_version

    typer.echo(f"{export_version(bundle, reference)} is in {bundle}")


@app.command(rich_help_panel=MODELS)
def where() -> None:
    """List where runs, reports, plots and registered versions are."""
    from pipelines.cli.where import show_places

    show_places(_chosen(None))


@app.command(rich_help_panel=MODELS)
def relocate() -> None:
    """After the repository was moved or copied: make the store name its own artifacts."""
    from pipelines.tracking.relocate import relocate as move_paths

    before, here = move_paths()
    typer.echo(f"the store named artifacts in {before}, and names those in {here} now")


@app.command(rich_help_panel=USE)
def generate(  # noqa: PLR0917 - options go by name
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: MaxNewTokens = Sampling.max_new_tokens,
    temperature: Temperature = Sampling.temperature,
    top_k: TopK = Sampling.top_k,
    top_p: TopP = Sampling.top_p,
    repetition_penalty: Penalty = Sampling.repetition_penalty,
    seed: Seed = Sampling.seed,
) -> None:
    """Continue a text with the champion."""
    from pipelines.cli.terminal import generate as generate_text

    generate_text(
        prompt,
        _settings(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed),
    )


@app.command(rich_help_panel=USE)
def chat(  # noqa: PLR0917 - options go by name
    max_new_tokens: MaxNewTokens = 32,
    temperature: Temperature = Sampling.temperature,
    top_k: TopK = Sampling.top_k,
    top_p: TopP = Sampling.top_p,
    repetition_penalty: Penalty = Sampling.repetition_penalty,
    seed: Seed = Sampling.seed,
) -> None:
    """Write a text in turns with the champion; a blank line ends it."""
    import sys

    from pipelines.cli.terminal import chat as take_turns

    settings = _settings(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    take_turns(settings, sys.stdin, sys.stdout)


@app.command(rich_help_panel=USE)
def serve(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Serve the champion over HTTP on 127.0.0.1; a promotion takes effect within seconds."""
    from pipelines.cli.serve import serve as serve_champion

    serve_champion(port)


@app.command(rich_help_panel=USE)
def score(
    documents: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file, directory or glob, as for ingest.source."),
    ],
    models: Annotated[
        Path | None,
        typer.Option(help="A directory with lm/ and flow/; by default the champion."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME.jsonl",
            help="Write the scores of every document here, and NAME.png and NAME.html.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of documents to print and show.")] = 20,
) -> None:
    """Score how atypical documents are, and print the most atypical first."""
    from pipelines.cli.score import score as score_documents

    score_documents(documents, models=models, output=output, top=top)


@app.command(rich_help_panel=RUNS)
def monitor(
    run: Run = None,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and exit.")] = False,
) -> None:
    """Watch a training run: progress, metrics, loss curve, checkpoint, hardware."""
    from pipelines.base.workspace import Workspace
    from pipelines.cli.monitor import monitor as watch

    watch(run, Workspace("").runs, once=once)


@app.command(rich_help_panel=RUNS)
def resend(run: Run = None) -> None:
    """Send to MLflow what it missed of a training run while it could not be reached."""
    from pipelines.base.workspace import Workspace
    from pipelines.runs.mlflow_run import resend as send_again
    from pipelines.runs.status import newest_run

    typer.echo(f"MLflow run {send_again(run or newest_run(Workspace('').runs))} is complete")


@app.command(rich_help_panel=RUNS)
def join(
    run: Annotated[Path, typer.Argument(help="Directory runs/<fingerprint> on the first node.")],
) -> None:
    """Run this node's ranks of a training that another node started."""
    from pipelines.runs.agent import join as join_run

    join_run(run)


@app.command(rich_help_panel=RUNS)
def why(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="A document's id, or a sequence: train:123.")
    ],
    as_json: AsJson = False,
) -> None:
    """Tell what became of a document or sequence at each data stage, and why."""
    from pipelines.cli.why import show_why

    show_why(name, as_json=as_json)


@app.command(rich_help_panel=RUNS)
def analyze() -> None:
    """Describe the data of each split: lengths, scripts, [UNK], repetition, overlap."""
    from pipelines.data.audit.statistics import main as analyze_data

    analyze_data()


@app.command(rich_help_panel=RUNS)
def audit(
    trained_on: Annotated[
        str, typer.Argument(metavar="A", help="What is trained on: a file, directory or glob.")
    ],
    held_out: Annotated[str, typer.Argument(metavar="B", help="What is held out, likewise.")],
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report here as JSON.")
    ] = None,
    max_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Largest share of its windows a document may share."),
    ] = 0.15,
) -> None:
    """Compare two corpora; exit with 1 if a document of one is in the other, 2 on bad input."""
    from pipelines.cli.audit import audit as audit_corpora

    try:
        clean = audit_corpora(trained_on, held_out, max_share=max_share, output=report)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if clean else 1)


def _settings(*values: float) -> dict[str, float]:
    """Name the options by which tokens are drawn; `Sampling` checks their bounds."""
    names = (field.name for field in fields(Sampling))
    return dict(zip(names, values, strict=True))


def _chosen(model: ModelName | None) -> list[str]:
    return [model.value] if model else [name.value for name in ModelName]
