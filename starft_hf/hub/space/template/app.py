"""The Space's page. What it shows is in space.json."""

from pathlib import Path

from starft_hf.hub.space import build


demo = build(Path(__file__).parent)

if __name__ == "__main__":
    demo.launch()
