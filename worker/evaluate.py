"""`python -m worker.evaluate`: measure a bundle as the service draws with it, scenes and all."""

from app.jobs.scene import read_scene
from models.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main(read=read_scene))
