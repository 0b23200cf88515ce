"""CPU time of ``hat --help`` against the help of an empty Typer application.

Each runs in a fresh interpreter, in turn; the best of each is compared, since a start-up can only
be disturbed upwards. Target: at most 1.3.
"""

import resource
import statistics
import subprocess
import sys

EMPTY = """
import typer
app = typer.Typer(help="Nothing.", pretty_exceptions_enable=False)
@app.command()
def one(name: str) -> None:
    "One."
@app.command()
def two(name: str) -> None:
    "Two."
app(["--help"])
"""
HAT = "from hatcli.cli import main; main()"
ROUNDS = 15


def cpu_ms(code: str, *arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    commands = {
        "empty Typer --help": (EMPTY,),
        "hat --help": (HAT, "--help"),
        "hat train --help": (HAT, "train", "--help"),
        "hat pack cityscapes --help": (HAT, "pack", "cityscapes", "--help"),
    }
    for command in commands.values():  # compile and cache everything once
        cpu_ms(*command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(cpu_ms(*command))
    base = min(times["empty Typer --help"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:28} best {min(values):6.1f} ms  median {median:6.1f} ms"
              f"  ratio {min(values) / base:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
