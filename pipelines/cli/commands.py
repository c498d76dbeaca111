"""The command `enigma`: register, promote, look, generate, and training runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from enigma.generation import Sampling
from pipelines.base.run_stage import run_stage
from pipelines.registry import names as registered_models

app = typer.Typer(
    help="Register, promote and use the models that `dvc repro` makes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class ModelName(StrEnum):
    """The registered models, the language model first: the flow is over it."""

    LM = registered_models.LM
    FLOW = registered_models.FLOW


Model = Annotated[ModelName | None, typer.Option(help="Only this model; by default both.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]


def main() -> None:
    """Run the command line; a user's mistake ends in exit code 1 without a traceback."""
    run_stage(app)


@app.command()
def register(model: Model = None, as_json: AsJson = False) -> None:
    """Register the models that `dvc repro` made, with their proof."""
    from pipelines.cli.promotion import register_models

    register_models(_chosen(model), as_json=as_json)


@app.command()
def promote(
    model: Model = None,
    version: Annotated[
        int | None, typer.Option(help="Number of the version; by default the alias `candidate`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the gates and move nothing.")
    ] = False,
    allow_tie: Annotated[
        bool,
        typer.Option("--allow-tie", help="Accept a candidate that is as good as the champion."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if every gate passes; exit with 1 if one refuses."""
    from pipelines.cli.promotion import promote_models

    if version is not None and model is None:
        raise typer.BadParameter("--version needs --model: each model numbers its own versions")
    number = None if version is None else str(version)
    promote_models(
        _chosen(model), version=number, dry_run=dry_run, allow_tie=allow_tie, as_json=as_json
    )


@app.command()
def rollback(
    model: Annotated[ModelName, typer.Option(help="Which model.")],
    to: Annotated[int | None, typer.Option(help="By default the champion before this.")] = None,
    reason: Annotated[str, typer.Option(help="For the ledger.")] = "rolled back by hand",
) -> None:
    """Make an earlier champion the champion again."""
    from pipelines.registry.promote import rollback as rollback_model

    version = rollback_model(model.value, to=None if to is None else str(to), reason=reason)
    typer.echo(f"{model.value}: version {version} is the champion again")


MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to add at most.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Sample from this probability.")]
Penalty = Annotated[float, typer.Option(min=1.0, help="Against repetition; 1 for none.")]
Seed = Annotated[int, typer.Option(min=0)]


@app.command()
def generate(  # noqa: PLR0917 - options go by name
    prompt: str,
    max_new_tokens: MaxNewTokens = Sampling.max_new_tokens,
    temperature: Temperature = Sampling.temperature,
    top_k: TopK = Sampling.top_k,
    top_p: TopP = Sampling.top_p,
    repetition_penalty: Penalty = Sampling.repetition_penalty,
    seed: Seed = Sampling.seed,
) -> None:
    """Let the champion go on with PROMPT."""
    from pipelines.cli.terminal import generate as generate_text

    generate_text(
        prompt, Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    )


@app.command()
def score(
    documents: Annotated[str, typer.Argument(metavar="FILE", help="As ingest.source takes it.")],
    models: Annotated[
        Path | None,
        typer.Option(help="Directory of lm/ and flow/, as models/sanguo; by default the champion."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON lines with all scores of every document.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many to print, the oddest first.")] = 20,
) -> None:
    """Score how odd the documents of FILE are, before a model learns from them."""
    from pipelines.cli.score import score as score_documents

    score_documents(documents, models=models, output=output, top=top)


Run = Annotated[
    Path | None, typer.Argument(help="runs/<fingerprint>; by default the one written to last.")
]


@app.command()
def monitor(
    run: Run = None,
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
) -> None:
    """Watch a training run: progress, figures, curve, checkpoint, machine."""
    from pipelines.base.workspace import Workspace
    from pipelines.cli.monitor import monitor as watch

    watch(run, Workspace("").runs, once=once)


@app.command()
def resend(run: Run = None) -> None:
    """Send to MLflow what it missed of a training run while it was away."""
    from pipelines.base.workspace import Workspace
    from pipelines.runs.mlflow_run import resend as send_again
    from pipelines.runs.status import newest_run

    typer.echo(f"MLflow run {send_again(run or newest_run(Workspace('').runs))} is complete")


@app.command()
def join(run: Annotated[Path, typer.Argument(help="As the first node names it.")]) -> None:
    """Take this node's share of a training run that another node has started."""
    from pipelines.runs.agent import join as join_run

    join_run(run)


@app.command()
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

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    take_turns(sampling, sys.stdin, sys.stdout)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve the champion on 127.0.0.1, and follow its alias."""
    from pipelines.cli.serve import serve as serve_champion

    serve_champion(port)


@app.command()
def history(
    model: Model = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Point the aliases where the ledger ends.")
    ] = False,
) -> None:
    """Print who moved which champion, when and why; exit code 1 if an alias disagrees."""
    from pipelines.cli.history import show_history
    from pipelines.registry.promote import restore as restore_alias

    for name in _chosen(model):
        if restore:
            typer.echo(f"{name}: champion {restore_alias(name) or '(none)'}")
        show_history(name)


@app.command()
def lineage(
    reference: Annotated[str, typer.Argument(help="enigma-lm@champion, enigma-flow/3, ...")],
) -> None:
    """Walk from a version back to its parquet, and hash every file again."""
    from pipelines.registry.lineage import lineage as walk

    walk(reference)


@app.command()
def analyze() -> None:
    """Describe the data per split: lengths, characters, [UNK], scripts, repeats, overlap."""
    from pipelines.data.audit.statistics import main as analyze_data

    analyze_data()


@app.command()
def where() -> None:
    """Say where runs, reports, plots and models are."""
    from rich.console import Console

    from pipelines.base.workspace import Workspace
    from pipelines.params import load_params
    from pipelines.tracking.store import connect, tracking_uri
    from pipelines.tracking.uris import shown_uri

    client = connect()
    workspace = Workspace(load_params().name)
    uri = shown_uri(tracking_uri())
    console = Console(soft_wrap=True, highlight=False)
    view = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri} -h 127.0.0.1"
    docs = workspace.report("validate")
    lines = {
        "MLflow": view,
        "Data report": _found(docs / "index.html"),
        "Data Docs": _found(docs / "data_docs" / "index.html"),
        "Data analysis": _found(workspace.report("analyze") / "index.html", "enigma analyze"),
        **{
            f"Plots of {stage}": _found(workspace.report(stage) / "figures")
            for stage in ("train", "evaluate", "sample_flow")
        },
        "Prompt": 'enigma generate "却说曹操" --max-new-tokens 64',
    }
    for name, value in lines.items():
        console.print(f"{name}: {value}", markup=False)
    console.print(_versions(client))


def _found(path: Path, command: str = "dvc repro") -> str:
    return str(path.resolve()) if path.exists() else f"{path} (not made yet: `{command}`)"


def _versions(client: Any) -> Any:
    """A table of registered versions with their aliases."""
    from rich.table import Table

    table = Table("model", "version", "aliases", "profile", "figures", "commit")
    for name in _chosen(None):
        aliases: dict[str, list[str]] = {}
        for model in client.search_registered_models(f"name = '{name}'"):
            for alias, number in model.aliases.items():
                aliases.setdefault(str(number), []).append(alias)
        versions = client.search_model_versions(f"name = '{name}'")
        for version in sorted(versions, key=lambda v: int(v.version)):
            tags, number = version.tags, str(version.version)
            table.add_row(
                name, number, ", ".join(sorted(aliases.get(number, []))),
                tags.get("profile", ""), _figures(tags), tags.get("git_commit", "")[:7],
            )  # fmt: skip
    return table


def _figures(tags: dict[str, str]) -> str:
    if "bits_per_character" in tags:
        return f"{tags['bits_per_character'][:6]} bits per character"
    return f"{tags.get('test_nll_nats_per_dim', '')[:6]} nats per dimension"


def _chosen(model: ModelName | None) -> list[str]:
    return [model.value] if model else [name.value for name in ModelName]
