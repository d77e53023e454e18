"""The command ``push``: its options and its output."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.bundle.runtimes.model_paths import EXPORTABLE_KINDS
from finetune.cli.options.model_options import Json, Prior, check_models
from finetune.cli.render.output import (
    build_console_reporter,
    exit_on_stop_request,
    print_text,
    show_result,
)
from finetune.units import format_bytes

if TYPE_CHECKING:
    from finetune.cli.render.console import ConsoleReporter


def push(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder, bundle folder or checkpoint.")
    ],
    repository: Annotated[
        str,
        typer.Argument(metavar="USER/NAME", help="Repository; it is created if it does not exist."),
    ],
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="What to upload: timm, huggingface or onnx; may be repeated, onnx is then a "
            "subfolder.",
        ),
    ] = ["timm"],  # noqa: B006 typer copies it
    private: Annotated[
        bool, typer.Option("--private", help="Create a repository that only you can see.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch; it is created if it does not exist.  [main]"),
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="LICENSE",
            help="Licence of the model, as mit.  [that of the backbone's weights]",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Images for the parity check.  [validation images of the run]"),
    ] = None,
    prior: Prior = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the files and the front matter of the README, and upload nothing; needs no "
            "token.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a model with a page of its numbers and limits to the Hugging Face hub."""
    from finetune.commands.push.repository_name import (
        check_license,
        check_repository,
        check_revision,
    )

    check_repository(repository)
    check_revision(revision)
    check_license(license_name)
    check_models([model], prior, kinds=EXPORTABLE_KINDS, has_images=False)
    reporter = build_console_reporter(json_output=as_json)
    with exit_on_stop_request():
        from finetune.commands.push.push import push as command

        result = command(
            model,
            repository,
            format=formats,
            private=private,
            revision=revision,
            license=license_name,
            images=images,
            prior=prior,
            dry_run=dry_run,
            reporter=reporter,
        )
    show_result(reporter, result.to_json(), lambda tree: _show_push(reporter, tree))


def _show_push(reporter: "ConsoleReporter", tree: Mapping[str, Any]) -> None:
    total = format_bytes(sum(tree["files"].values()))
    if tree["url"] is None:
        lines = [f"  {name}: {format_bytes(size)}" for name, size in tree["files"].items()]
        print_text(
            f"{tree['repository']} would get {len(tree['files'])} files, {total}:\n"
            + "\n".join(lines)
            + "".join(f"\n  {name}: would be removed" for name in tree["removed"] or ())
            + f"\n\nFront matter of README.md:\n---\n{tree['head']}---\n"
        )
        is_checked = any(name.rpartition("/")[2] == "parity.json" for name in tree["files"])
        parity = "The parity check passed, and nothing" if is_checked else "Nothing"
        reporter.note(f"{parity} was uploaded (--dry-run).")
        return
    rows = {
        "model": tree["url"],
        "repository": "created" if tree["is_new"] else "existed; its history has what it was",
        "commit": tree["commit"],
        "files": f"{', '.join(tree['files'])} ({total})",
        "licence": tree["license"] or "unknown",
    }
    if tree["removed"]:
        rows["removed"] = ", ".join(tree["removed"])
    reporter.print_pairs(rows)
