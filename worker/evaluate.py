"""`python -m worker.evaluate`: measure a bundle as the service draws with it, scenes and all."""

from models.starting import ended_in_silence

if __name__ == "__main__":
    with ended_in_silence():
        from app.jobs.scene import read_scene
        from models.evaluate import main
    raise SystemExit(main(read=read_scene))
