"""Multi-clip DP-SGD (arXiv 2306.15742): gradients of a video's clips are averaged before their norm is cut.

Read: the abstract. It has the method and the epsilon, 5, and neither noise nor steps; taken is the least
noise that the claim allows, with which one update spends it all.
"""

from recipe import Recipe
from scipy.optimize import brentq

from vleak.certificates import gaussian_epsilon
from vleak.defenses import DpVideo

NOISE = brentq(lambda noise: gaussian_epsilon(noise, 1e-5) - 5, 0.5, 2)
MODEL = "vit_tubelet:width=48,depth=2,heads=3,patch=8,lora=4,lora_head=true"
VIDEOS = DpVideo(noise_multiplier=NOISE, windows=4, part=0.5)
WHOLE = DpVideo(noise_multiplier=NOISE, windows=4, part=1.0)  # canaries have no time to cut windows from
RECIPES = {"Multi-clip DP-SGD": Recipe(VIDEOS, {"model": MODEL}, claimed=5.0, audited=WHOLE)}
