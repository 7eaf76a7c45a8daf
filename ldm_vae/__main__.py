"""`python -m ldm_vae`, and what `accelerate launch -m` and `torchrun -m` start."""

from ldm_vae.cli import main

if __name__ == "__main__":
    main()
