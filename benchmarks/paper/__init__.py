"""The experiments of the Q-Diffusion paper on our networks: one file per figure, each by one command."""
