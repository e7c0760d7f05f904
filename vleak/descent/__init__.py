"""The inner loop of every optimising attack, and where the native extension is found or built."""
