"""The command `fastattn`: demo, explain, bench, info, compile."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import __version__


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="fastattn", description="Fused attention on a CPU, in plain Python.")
    top.add_argument("--version", action="version", version=f"fastattn {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command")

    demo = commands.add_parser("demo", help="the five steps of self-attention on a sentence, with real trained numbers")
    demo.add_argument("sentence", nargs="*", help='default: "I love Apple phones"')
    demo.add_argument("--word", help="the word to follow; default: one with two meanings, else a long one")
    demo.add_argument("--small", action="store_true", help="only what is built in, even if the whole model is there")
    demo.add_argument("--words", action="store_true", help="list the built-in words")

    explain = commands.add_parser("explain", help="who looks at whom in a sentence, in the terminal or as a page")
    explain.add_argument("sentence", nargs="+")
    explain.add_argument("--html", metavar="FILE", help="write a page for the browser: point at a word to see whom it looks at")
    explain.add_argument("--plot", metavar="FILE", help="draw heat maps, of the head or of all: .png, .svg, .pdf ...")
    explain.add_argument("--layer", type=int, default=1, help="1 to 6; beyond 1 needs the whole model")
    explain.add_argument("--head", type=int, help="1 to 12; default: the one in which the word looks hardest at another")
    explain.add_argument("--word", help="the word to follow; default: one with two meanings, else a long one")
    explain.add_argument("--small", action="store_true", help="only what is built in, even if the whole model is there")
    # Its options are the program's that it starts, which explains them, too.
    commands.add_parser("bench", add_help=False, help="how fast it is on this machine, beside every rival that is installed")
    commands.add_parser("info", help="what the library knows of this machine, and its cache of compiled code")
    commands.add_parser("compile", help="compile the usual kernels now rather than at their first call")
    return top


def run_demo(args: argparse.Namespace) -> None:
    from . import demo, screen

    if args.words:
        lines = demo.vocabulary()
    else:
        text = " ".join(args.sentence) if args.sentence else None
        lines = demo.demo(text, args.word, args.small, shutil.get_terminal_size().columns)
    screen.show(lines, sys.stdout)


def run_explain(args: argparse.Namespace) -> None:
    from . import demo, screen

    shown = demo.sentence(" ".join(args.sentence), args.word, args.layer, args.small)
    heads = len(shown.q)
    if args.head is not None and not 1 <= args.head <= heads:
        raise demo.DemoError(f"--head must be from 1 to {heads}; got {args.head}")
    head = shown.head if args.head is None else args.head - 1
    try:
        if args.html:
            shown.to_html(args.html, head=head, row=shown.i, title=shown.text)
        if args.plot:
            shown.plot(None if args.head is None else head).savefig(args.plot)
    except (ImportError, OSError, ValueError) as error:
        raise demo.DemoError(str(error)) from error
    screen.show(shown.lines(head, shown.i, shutil.get_terminal_size().columns), sys.stdout)
    for path in filter(None, (args.html, args.plot)):
        print(f"\n{path}: {os.path.getsize(path):,} bytes")


def run_bench(options: Sequence[str]) -> int:
    """Run benchmarks/bench.py as a program of its own, and return its exit code; it says why it must be one."""
    package = Path(__file__).parent
    homes = package / "bench", package.parent       # in a wheel, in a checkout
    home = next((home for home in homes if (home / "benchmarks" / "bench.py").is_file()), None)
    if home is None:
        raise BenchError(f"benchmarks/bench.py is neither in {homes[0]} nor in {homes[1]}; install the wheel again")
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    # -P: what is called benchmarks in the working directory is something else.
    command = [sys.executable, "-P", "-m", "benchmarks.bench", *options]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as bench:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C reaches the program, too, which prints what it has
        try:
            return bench.wait()
        finally:
            signal.signal(signal.SIGINT, before)


def run_info(args: argparse.Namespace) -> None:
    from . import cache_info, machine
    from .tiles.pool import thread_count

    table("machine", {**machine.describe(), "threads": thread_count()})
    table("cache", cache_info())


def run_compile(args: argparse.Namespace) -> None:
    from . import cache_info, compile

    if cache_info()["directory"] is None:
        asked = os.environ.get("FASTATTN_CACHE")
        why = "FASTATTN_CACHE=0" if asked == "0" else f"{asked or 'its directory'} must be a directory that you alone can write"
        raise CompileError(f"there is no cache that the code could be left in: {why}")
    print("compiling four kernels, some seconds each ...", flush=True)
    compile()
    table("cache", cache_info())


class CompileError(Exception):
    """Why compiling would be in vain."""


class BenchError(Exception):
    """Why there is nothing to run."""


def table(name: str, entries: Mapping[str, object]) -> None:
    print(name)
    for key, value in entries.items():
        print(f"  {key:<20} {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    top = parser()
    args, options = top.parse_known_args(argv)
    if options and args.command != "bench":
        top.error(f"unrecognized arguments: {' '.join(options)}")
    commands = {"demo": run_demo, "explain": run_explain, "info": run_info, "compile": run_compile}
    if args.command is None:
        top.print_help()
        return 0
    from .demo import DemoError

    try:
        if args.command == "bench":
            return run_bench(options)
        commands[args.command](args)
        sys.stdout.flush()
    except (BenchError, DemoError, CompileError) as error:
        print(f"fastattn {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:                         # the reader (`head`) has gone; Python's last flush must not say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
