"""What tests of the command line share: commands, how they are refused, and the program
in a process of its own.
"""

import random
import signal
import subprocess
import sys
import time

from minialign.__main__ import main

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def train(folder, data, out, *more):
    """The words of a training with SFT."""
    return ["train", "--model", str(folder), "--method", "sft", "--data", str(data),
            "--out", str(out), *more]


def refused(words, capsys, *sentence, status=2):
    """The command ends with that status, says the words, and shows no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for words in sentence:
        assert words in said, said


def command(*words):
    return [sys.executable, "-m", "minialign", *words]


def wait_for(path, lines, process):
    """Until the file has that many lines, or the process is done."""
    for _ in range(600):
        if process.poll() is not None or (path.exists() and path.read_text().count("\n") >= lines):
            return
        time.sleep(0.05)


def stopped(words, out, how, lines) -> str:
    """Start the program, wait for some more lines in its file, stop it at a random moment.

    Returns what it said on standard error.
    """
    there = out.read_text().count("\n") if out.exists() else 0
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(out, there + lines, process)
    time.sleep(random.uniform(0, 0.2))
    process.send_signal(how)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), errors
    return errors
