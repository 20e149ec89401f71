"""The README's recording of a terminal: `python -m benchmarks.cast` draws what `starft demo --quick` prints.

Everything shown is what the command wrote; only the waiting between two lines is shortened. `--text FILE` keeps the
recorded text, and draws it again without running anything where the file exists.
"""

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.text import Text

from starft_hf.utils.files import file_in_place_of
from starft_hf.utils.plotting import DARK_COLORS


GIF = Path(__file__).parents[1] / "docs" / "demo.gif"
COMMAND = "starft demo --quick"
COLUMNS, ROWS = 96, 40
# 96 characters of 13 pixels are 768 pixels wide, and 830 are what a README has.
SIZE, MARGIN = 13, 16
# Lines of tables meet.
LINE = round(1.16 * SIZE)
# Milliseconds: a typed letter, a change, the end.
TYPED, CHANGED, LAST = 60, 700, 12_000


def record() -> list[str]:
    """What the terminal has received after every write of the command."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "starft_hf", *COMMAND.split()[1:]]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.getcwd()}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=slave, stderr=slave)
        os.close(slave)
        received, states = b"", []
        while True:
            try:
                chunk = os.read(master, 65536)
            # Linux's way to say that nobody writes any more.
            except OSError:
                break
            received += chunk
            states.append(received.decode("utf-8", errors="ignore"))
    os.close(master)
    if process.wait() != 0:
        raise RuntimeError(f"`{COMMAND}` failed: {states[-1] if states else 'no output'}")
    return states


def lines_of(received: str) -> list[str]:
    """The lines of a terminal: a carriage return starts a line again."""
    lines = received.replace("\r\n", "\n").split("\n")
    return [line.rstrip("\r").rpartition("\r")[2].replace("\x1b[A", "") for line in lines]


def frames_of(states: list[str]) -> list[tuple[list[str], int]]:
    """Lines and how long they are shown, where they differ by more than the clock of a progress bar."""
    frames = [([f"$ {COMMAND[:end]}"], TYPED) for end in range(len(COMMAND) + 1)]
    seen = None
    for state in states:
        lines = lines_of(state)
        without_clock = [line.partition(" [")[0] if "it/s" in line or "runs" in line else line for line in lines]
        if without_clock != seen:
            frames.append(([f"$ {COMMAND}", *lines], CHANGED))
            seen = without_clock
    frames[-1] = (frames[-1][0], LAST)
    return frames


def draw(lines: list[str], height: int) -> Image.Image:
    """One frame, in the dark scheme of the pages."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain, bold = (ImageFont.truetype(fonts / f"DejaVuSansMono{kind}.ttf", SIZE) for kind in ("", "-Bold"))
    step = plain.getlength("m")
    image = Image.new("RGB", (round(COLUMNS * step) + 2 * MARGIN, height), DARK_COLORS["paper"])
    canvas = ImageDraw.Draw(image)
    console = Console(width=COLUMNS)
    for row, line in enumerate(lines):
        place = 0
        for segment in Text.from_ansi(line).render(console):
            style = segment.style
            strong, dim = bool(style and style.bold), bool(style and style.dim)
            color = DARK_COLORS["soft" if dim else "series-6" if style and style.color else "ink"]
            for letter in segment.text.rstrip("\n"):
                where = (MARGIN + place * step, MARGIN + row * LINE)
                canvas.text(where, letter, fill=color, font=bold if strong else plain)
                place += 1
    return image


def main() -> None:
    """Record and draw."""
    parser = argparse.ArgumentParser("python -m benchmarks.cast", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="a JSON file of the recorded text")
    options = parser.parse_args()
    if options.text and options.text.exists():
        states = json.loads(options.text.read_text(encoding="utf-8"))
    else:
        states = record()
        if options.text:
            options.text.write_text(json.dumps(states), encoding="utf-8")
    frames = frames_of(states)
    height = 2 * MARGIN + LINE * max(len(lines) for lines, _ in frames)
    images = [draw(lines, height).quantize(16, dither=Image.Dither.NONE) for lines, _ in frames]
    durations = [duration for _, duration in frames]
    with file_in_place_of(GIF) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
        )
    print(f"{GIF}: {len(images)} frames, {images[0].size}, {GIF.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
