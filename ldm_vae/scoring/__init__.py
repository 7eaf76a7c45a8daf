"""How unlike normal pictures a picture is."""
