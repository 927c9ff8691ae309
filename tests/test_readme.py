"""What the README says works."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_its_code_runs():
    known = {}                                      # a block may use what one before has made
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), known)
    assert {"padding", "lse", "parts"} <= set(known)


def test_it_has_two_set_up_commands_of_one_line():
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert commands[0].rstrip().endswith("fastattn demo")
    assert commands[1].rstrip().endswith("pytest")
