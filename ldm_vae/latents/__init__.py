"""The format of latents on the disk: shards, their index, and what reads them with torch and numpy alone."""
