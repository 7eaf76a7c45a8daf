"""What a latent space holds: samples, ways between pictures, edits, neighbours, and variants of pictures."""
