"""Quickstart: ``main.py data`` makes a labelled folder; ``main.py`` asks the running server and gives thumbs."""

from __future__ import annotations

import csv
import io
import random
import sys
from pathlib import Path

from PIL import Image

from plaudit.client import Client, Prediction

ROWS = {"train": 192, "val": 32, "test": 32}
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def square(colour: str, draw: random.Random) -> bytes:
    """PNG of a square of about that colour."""
    shade = tuple(min(255, max(0, part + draw.randint(-30, 30))) for part in COLOURS[colour])
    file = io.BytesIO()
    Image.new("RGB", (16, 16), shade).save(file, format="PNG")
    return file.getvalue()


def write_data(folder: Path) -> None:
    """Labelled folder: ``manifest.csv`` and the images it names."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        manifest = csv.writer(file)
        manifest.writerow(["split", "action", "image"])
        for split, rows in ROWS.items():
            for row in range(rows):
                colour = draw.choice(list(COLOURS))
                (folder / f"{split}-{row}.png").write_bytes(square(colour, draw))
                manifest.writerow([split, colour, f"{split}-{row}.png"])


def ask_about_blue(client: Client) -> Prediction:
    return client.predict({"image": square("blue", random.Random(1))}, user_id="ada")


def give_thumbs(client: Client, thumbs: int = 160) -> None:
    """Users want blue squares to be called red, and red ones too."""
    draw = random.Random(2)
    for number in range(thumbs):
        answer = client.predict({"image": square("blue", draw)}, user_id=f"user-{number % 20}")
        if answer.action == "red":
            client.thumbs_up(answer)
        else:
            client.thumbs_down(answer)


def main(target: str) -> None:
    with Client(target) as client:
        before = ask_about_blue(client)
        give_thumbs(client)
        for rollout in client.watch_versions():
            after = ask_about_blue(client)
            print(f"version {rollout.live}: P(red | blue square) = {after.scores['red']:.2f}")
            if after.scores["red"] > before.scores["red"] + 0.2:
                break


if __name__ == "__main__":
    if sys.argv[1:2] == ["data"]:
        write_data(Path(sys.argv[2] if len(sys.argv) > 2 else "data"))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
