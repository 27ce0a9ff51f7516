"""The command `viaduct`: one subcommand a job, built from the jobs' configurations."""

import contextlib
import importlib
import inspect
import io
import logging
import signal
import sys
from dataclasses import fields
from typing import Any, get_type_hints

import tyro

from jobs import recipes, settings
from pipeline.errors import ConfigError, DatasetError, ViaductError

COMMANDS = {
    "ingest": ("Ingest", "fetch or read the pictures of a source into raw/"),
    "curate": ("Curate", "raw/ to pairs/: equal pictures united, captions judged, split"),
    "features": ("Features", "pairs/ to features/: the frozen vision encoder, once"),
    "train-stage1": ("TrainStage1", "features/ to stage1/: the Q-Former, by ITC, ITM and ITG"),
    "capfilt": ("Capfilt", "candidates/: captions that stage1/ writes, scored beside the web's"),
    "select-captions": ("SelectCaptions", "candidates/ to captions/: those that are trained on"),
    "train-stage2": ("TrainStage2", "stage1/ to stage2/: a projection into a language model"),
    "import": ("Import", "weights of LAVIS or transformers to stage1/ or stage2/"),
    "export": ("Export", "stage1/ or stage2/ to weights of LAVIS or transformers"),
    "embed": ("Embed", "contrastive embeddings of pictures and captions"),
    "index": ("Index", "embeddings to index/: FAISS, grouped by picture"),
    "evaluate": ("Evaluate", "recall and ITM accuracy on held-out pairs, beside controls"),
    "evaluate captions": ("EvaluateCaptions", "CIDEr and BLEU-4 of captions that were written"),
    "evaluate annotations": ("EvaluateAnnotations", "an annotation file to recall, at once"),
    "search": ("Search", "pictures by words, by picture or by both; captions by picture"),
    "serve": ("Serve", "the same over HTTP, with a page"),
    "caption": ("Caption", "captions of pictures, by a checkpoint of either stage"),
    "answer": ("Answer", "answers to a question about pictures, by a checkpoint of stage 2"),
    "report": ("Report", "one HTML page of all that a run made"),
    "takedown": ("Takedown", "pictures out of every dataset and index; which trainings saw them"),
    "status": ("Status", "how far a job is, how fast, and what failed why"),
    "inspect": ("Inspect", "show any dataset; verify it; write pictures out"),
    "plan": ("Plan", "bytes, hours and GB/s of each step of a run, before it is begun"),
    "submit": ("Submit", "any of these as a run on a cluster"),
    "runs": ("Runs", "the runs of a cluster"),
    "runs follow": ("FollowRun", "a run's log until it ends"),
    "runs stop": ("StopRun", "end a run, as Ctrl-C ends a command"),
    "demo": ("Demo", "the jobs one after the other, on a procedural web with the web's faults"),
}
"""Subcommand to the class in the module of the same name, imported only when it is called."""

_MODULES = {
    "import": "import_weights",
    "export": "export_weights",
    "evaluate": "evaluate.retrieval",
    "evaluate captions": "evaluate.captions",
    "evaluate annotations": "evaluate.annotations",
    "runs follow": "runs",
    "runs stop": "runs",
}
"""Where the module is of another name: `import` cannot be one, and some hold several commands."""

_MAKES_NOTHING = (
    *("import", "export", "evaluate", "evaluate captions", "search", "serve", "caption"),
    *("answer", "report", "takedown", "status", "inspect", "plan", "demo"),
    *("submit", "runs", "runs follow", "runs stop"),
)
"""Commands that have nothing to go on with."""

WRONG_INPUT, SET_ASIDE, STOPPED = 2, 3, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0: done. 1: a fault of ours or of the cluster. 2: wrong input or damaged data, one line says
    which. 3: shards were set aside, the rest is committed. 130: stopped by Ctrl-C or SIGTERM. What
    follows a run on a cluster ends with that run's.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else WRONG_INPUT
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    command, rest = split_command(arguments)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way of Ctrl-C
    try:
        done = parse(command, rest).run()
    except KeyboardInterrupt:
        goes_on = "" if command in _MAKES_NOTHING else "; the same command goes on from here"
        print(f"viaduct {command}: stopped{goes_on}", file=sys.stderr)
        return STOPPED
    except ViaductError as error:
        print(f"viaduct {command}: {error}", file=sys.stderr)
        return _exit_code(error)
    if isinstance(done, int):
        return done
    for made in done if isinstance(done, list) else [done]:
        if made is not None:
            print(f"{made.folder}: {made.summary}")
    return 0


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, and what is left of the arguments."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:words]), arguments[words:]


def parse(command: str, arguments: list[str]) -> Any:
    """The configuration that the arguments describe.

    Raises:
        ConfigError: they describe none; one line says why.
        SystemExit: after --help.
    """
    job = job_of(command)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                job,
                prog=f"viaduct {command}",
                description=_description(command, job),
                args=_with_saved(command, job, arguments),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(errors.getvalue())) from None


def job_of(command: str) -> type:
    """The configuration of a command.

    Raises:
        ConfigError: there is none of that name.
    """
    if command not in COMMANDS:
        raise ConfigError(f"no such command; one of {', '.join(COMMANDS)} is needed")
    module = importlib.import_module(f"jobs.{_MODULES.get(command, command.replace('-', '_'))}")
    return getattr(module, COMMANDS[command][0])


def _with_saved(command: str, job: type, arguments: list[str]) -> list[str]:
    """`--recipe NAME` and `--config FILE` replaced by what they say; what stands later overrides.

    Whatever their order, a file overrides a recipe, and options override both. What stands behind
    `--` is no option of this command.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, behind = arguments[:end], arguments[end:]
    recipe, arguments = _taken(arguments, "--recipe", "no recipe")
    file, arguments = _taken(arguments, "--config", "no file")
    values = recipes.recipe_options(recipe, command) if recipe else {}
    if file:
        values = values | settings.read(file)
    hints = get_type_hints(job, include_extras=True)
    positional = tuple(
        field.name
        for field in fields(job)
        if tyro.conf.Positional in getattr(hints[field.name], "__metadata__", ())
    )
    return [*settings.to_arguments(values, positional), *arguments, *behind]


def with_config(command: str, arguments: list[str]) -> list[str]:
    """Arguments that mean the same on a machine without the file that --config names."""
    file, _ = _taken(arguments, "--config", "no file")
    return arguments if file is None else _with_saved(command, job_of(command), arguments)


def _taken(arguments: list[str], option: str, without: str) -> tuple[str | None, list[str]]:
    """The value of an option that no job has, and the arguments without it.

    Raises:
        ConfigError: it has no value; `without` says what it names then.
    """
    given = [
        word
        for argument in arguments
        for word in (argument.split("=", 1) if argument.startswith(f"{option}=") else [argument])
    ]
    if option not in given:
        return None, arguments
    at = given.index(option)
    if at + 1 == len(given):
        raise ConfigError(f"{option}: names {without}")
    return given[at + 1], given[:at] + given[at + 2 :]


def _description(command: str, job: type) -> str:
    """What stands over the options in a job's help."""
    more = "Options may come from a file: --config FILE"
    if recipes.takes_recipe(command):
        names = ", ".join(name for name in recipes.RECIPES if command in recipes.RECIPES[name])
        more += f"; or from a set that has a name: --recipe NAME, one of {names}"
    return f"{inspect.getdoc(job)}\n\n{more}. Those given beside it override it."


def _one_line(box: str) -> str:
    """The message in the box that the argument parser prints, without box and help."""
    lines = [line.strip(" \u2502\n") for line in box.splitlines()]
    message = []
    for line in lines:
        if line.startswith("\u2500"):  # a rule; help follows
            break
        if line and not line.startswith(("\u256d", "\u2570")):
            message.append(line)
    return " ".join(message) or "wrong arguments"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: viaduct COMMAND [OPTIONS]",
            "",
            "BLIP-2 pretraining around its data. Commands, in the order in which data flows:",
            "",
            *lines,
            "",
            "viaduct COMMAND --help shows every option with its unit and default;",
            "--config FILE runs a saved configuration (config.yaml beside each output),",
            "--recipe NAME one of the paper's or the demo's (train-stage1 --help names them).",
        ]
    )


def _exit_code(error: ViaductError) -> int:
    from jobs.build import Incomplete

    if isinstance(error, (ConfigError, DatasetError)):
        return WRONG_INPUT
    if isinstance(error, Incomplete):
        return WRONG_INPUT if error.damaged else SET_ASIDE
    return 1


if __name__ == "__main__":
    sys.exit(main())
