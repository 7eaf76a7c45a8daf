"""Networks that are looked through and never trained, and where their weights come from."""
