"""`python -m models.train clip | denoiser | upscaler | judge | distil …`."""

from models.starting import ended_in_silence

if __name__ == "__main__":
    with ended_in_silence():
        from models.train.commands import main
    raise SystemExit(main())
