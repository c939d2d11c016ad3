"""Training: captioned pictures in, a bundle out."""
