"""A painter of landscapes whose pictures are functions of the plane.

A scene is a set of numbers (`compose`); `paint` evaluates it at any rectangle and any resolution.
Nothing is stored as pixels: `landscape.cu` says what a point looks like, and is compiled for the
GPU or for the CPU when first needed.  A crop at 15x is the same picture with more detail in it, not
an enlargement.

Coordinates: the picture's height is 1, y points up, x = 0 is the middle.
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PLACES = ("mountains", "lake", "sea", "desert", "forest", "hills")
TIMES = ("dawn", "day", "sunset", "dusk", "night")
SKIES = ("clear", "broken", "cloudy")
PALETTES = ("natural", "warm", "cool", "pastel", "vivid")
COLOURS = ("zenith", "middle", "horizon", "light", "ambient", "cloud", "shade", "grass")
LAYERS = 8
FRONT = 6            # layers before this one are mirrored in the water, the rest stand before it
OCTAVES = 11


@dataclass(frozen=True)
class Theme:
    """What a caption can say about a scene; `compose` turns it into numbers."""

    place: str
    time: str
    sky: str = "clear"
    palette: str = "natural"
    mist: bool = False
    winter: bool = False
    side: str = "centre"       # where the sun or the moon stands: left, centre or right
    horizon: str = "middle"    # low (a wide sky), middle or high
    framed: bool = False       # tall pines at both edges of the foreground


# ---------------------------------------------------------------------------------- composition

SKY_COLOURS = {  # zenith, middle, horizon, light, ambient, cloud in light, cloud in shade
    "dawn": ((.40, .55, .78), (.88, .74, .80), (1.0, .84, .68), (1.0, .82, .64), (.50, .48, .62),
             (1.0, .84, .78), (.72, .64, .78)),
    "day": ((.11, .38, .76), (.40, .67, .92), (.84, .93, .96), (1.0, .94, .80), (.44, .53, .68),
            (1.0, 1.0, 1.0), (.72, .80, .90)),
    "sunset": ((.20, .17, .40), (.80, .33, .33), (1.0, .70, .30), (1.0, .60, .30),
               (.36, .24, .38), (1.0, .58, .34), (.48, .24, .38)),
    "dusk": ((.09, .10, .30), (.33, .24, .52), (.84, .50, .56), (.62, .42, .58), (.24, .22, .42),
             (.62, .38, .58), (.23, .18, .38)),
    "night": ((.015, .030, .10), (.045, .095, .23), (.16, .28, .45), (.46, .58, .80),
              (.105, .150, .28), (.28, .36, .54), (.07, .11, .22)),
}
ROCKS = (((.34, .32, .36), (.52, .48, .48)), ((.40, .30, .27), (.60, .46, .38)),
         ((.26, .30, .36), (.44, .48, .52)))
SANDS = (((.86, .62, .36), (.97, .79, .52)), ((.78, .42, .24), (.92, .58, .34)),
         ((.86, .68, .44), (.97, .83, .58)))
GREENS = (((.18, .34, .13), (.42, .54, .18)), ((.13, .31, .20), (.30, .50, .24)),
          ((.34, .38, .12), (.62, .60, .22)))
WOODS = (((.06, .15, .13), (.12, .24, .15)), ((.05, .16, .10), (.14, .26, .10)))
SNOW = ((.80, .86, .95), (.95, .97, 1.0))


def layer(base: float, amp: float, freq: float, **more) -> dict:
    """One ridge of a scene with its defaults; `compose` lists them from far to near.

    base, amp, freq: height of its foot, of its relief, and how many hills a unit holds.
    sharp, gain: see relief.  skew: how fast the relief changes down the slope.
    low, high: the two colours of the ground.  haze: share of the sky's colour in front of it.
    mist: extra haze at its foot.  snow: share of the slope under snow.  rough: strength of texture.
    trees: height of trees on its crest (0: none), gap: their distance, crown: 0 firs, 1 round.
    left, right, soft: where it begins and ends, and over what width (headlands, islands).
    void: half width of a gap in the middle.  depth: how far the slope is seen below its crest.
    relief: strength of light and shade.
    rows, row_drop: rows of trees and the height between them.  dense, clump: the share of places
    that hold one, and how much it changes from place to place.
    taper: run down to the water like a headland.  turf: how deep grass reaches on tops of rock.
    strata: horizontal beds of rock.  ripple: wind ripples of sand.  bloom: flowers.
    """
    out = dict(base=base, amp=amp, freq=freq, sharp=0.0, gain=.45, skew=.6, haze=0.0, mist=0.0,
               snow=0.0, rough=.5, trees=0.0, gap=.03, crown=0.0, left=-9.0, right=9.0, soft=.2,
               void=-1.0, strata=0.0, ripple=0.0, bloom=0.0, depth=.3, relief=1.0, taper=0.0,
               turf=0.0,
               rows=1.0 if more.get("trees") else 0.0, row_drop=.02, dense=.93, clump=0.0,
               low=(.3, .3, .3), high=(.5, .5, .5))
    out.update(more)
    return out


def compose(theme: Theme, aspect: float, rng: random.Random) -> dict:
    """Numbers of one scene: scalars, colours (3 values) and a list of LAYERS layers."""
    u = rng.uniform
    half = aspect / 2
    level = {"low": u(.22, .29), "middle": u(.36, .42), "high": u(.50, .57)}[theme.horizon]
    side = {"left": u(-.72, -.42), "centre": u(-.14, .14), "right": u(.42, .72)}[theme.side]
    above = {"dawn": u(.05, .13), "day": u(.30, .42), "sunset": u(.02, .10), "dusk": u(-.06, -.03),
             "night": u(.28, .42)}[theme.time]
    green, wood = rng.choice(GREENS), rng.choice(WOODS)
    rock, sand = rng.choice(ROCKS), rng.choice(SANDS)
    if theme.winter:
        green = sand = SNOW
    snow = u(.55, .8) if theme.winter else rng.choice((0.0, u(.2, .4), u(.3, .5)))
    haze = 1.0 if theme.mist else .72
    mist = u(.75, .95) if theme.mist else u(.15, .4)
    scene = dict(
        level=level, light_x=side * half, light_y=min(level + above, .93), aspect=aspect,
        cover={"clear": u(.0, .12), "broken": u(.38, .52), "cloudy": u(.72, .9)}[theme.sky],
        night=float(theme.time == "night"), day=float(theme.time == "day"),
        glow={"day": .35, "night": .45, "dusk": .5}.get(theme.time, 1.0),
        disc={"day": .030, "night": .040, "dusk": .001}.get(theme.time, .048),
        phase=u(-.8, .8), grade=PALETTES.index(theme.palette),
        water=-1.0, wave=0.0, winter=float(theme.winter), seed=rng.randrange(1 << 30))

    def ridges(n: int, top: float, drop: float, amp: float, far: float, near: float, **more):
        """n layers from top downwards; haze falls from far to near."""
        out = []
        for k in range(n):
            t = k / max(1, n - 1)
            look = dict(haze=haze * (far + (near - far) * t), mist=mist * (far > 0))
            look.update({key: v(t) if callable(v) else v for key, v in more.items()})
            out.append(layer(top - drop * k + u(-.01, .01), amp * u(.8, 1.2), **look))
        return out

    firs = dict(sharp=0.0, gain=.3, crown=0.0, low=wood[0], high=wood[1],
                snow=1.7 * theme.winter, rough=.5)
    peaks = dict(sharp=1.0, gain=.5, skew=.55, low=rock[0], high=rock[1], snow=snow, depth=.35)
    layers: list[dict]
    if theme.place == "mountains":
        layers = ridges(2, level + .02, .03, .30, .80, .62, freq=1.5, **peaks)
        layers += ridges(2, level - .05, .08, .36, .45, .22, freq=1.15, **peaks)
        layers += ridges(2, level - .15, .09, .09, .24, .08, freq=1.4, depth=.2, rows=3.0,
                         dense=.70, clump=.7, row_drop=lambda t: .014 + .018 * t,
                         trees=lambda t: .032 + .040 * t, gap=lambda t: .011 + .013 * t, **firs)
        layers += ridges(1, level - .34, .06, .10, .0, .0, freq=1.1, low=green[0], high=green[1],
                         gain=.35, rough=.9, depth=.9, bloom=0.0 if theme.winter else u(0, .6))
    elif theme.place == "lake":
        scene.update(water=level - .01, wave=u(.1, .35))
        layers = ridges(2, level + .02, .02, .28, .78, .58, freq=1.5, **peaks)
        layers += ridges(2, level - .01, .03, .28, .42, .22, freq=1.1, **peaks)
        layers += ridges(2, level + .005, .012, .04, .22, .10, freq=1.8, depth=.06,
                         rows=2.0, dense=.80, clump=.6, row_drop=.006,
                         trees=lambda t: .030 + .020 * t, gap=lambda t: .010 + .006 * t, **firs)
        shore = rng.choice(((-9.0, -half + u(.35, .7) * half), (half - u(.35, .7) * half, 9.0),
                            (-9.0, 9.0)))
        layers += ridges(1, u(.0, .05), .05, .12, .0, .0, freq=1.3, low=green[0], high=green[1],
                         gain=.4, rough=.9, depth=.2, left=shore[0], right=shore[1], soft=.5)
    elif theme.place == "sea":
        scene.update(water=level, wave=u(.5, 1.0))
        cape = rng.choice((-1, 1))
        coast = dict(sharp=.9, gain=.55, low=rock[0], high=rock[1], snow=snow * theme.winter,
                     strata=u(.3, .9), depth=.25, skew=.45, turf=u(.01, .035), relief=1.2)

        def reach(at: float) -> dict:
            edge = half * at
            return dict(left=-9.0, right=-edge) if cape < 0 else dict(left=edge, right=9.0)

        def stack(at: float, wide: float) -> dict:
            return dict(left=at - wide, right=at + wide, soft=1.2 * wide, taper=.22)
        layers = ridges(1, level - .01, 0, .10, .75, .7, freq=3.0, soft=.5, taper=.8,
                        **(coast | dict(left=(far := u(-.7, .7) * half) - .3, right=far + .3)))
        layers += ridges(1, level + .04, 0, .14, .60, .5, freq=2.2, soft=.45, taper=.5,
                         **reach(u(-.2, .1)), **coast)
        layers += ridges(1, level + .07, 0, .20, .40, .3, freq=2.0, soft=.35, taper=.4,
                         **reach(u(.2, .35)), **coast)
        layers += ridges(1, level + .02, 0, .20, .24, .2, freq=5.0,
                         **stack(-cape * u(-.25, .4) * half, u(.04, .09)), **coast)
        layers += ridges(1, level + .10, 0, .26, .16, .1, freq=1.7, soft=.30, taper=.35,
                         **reach(u(.5, .65)), **coast)
        layers += [layer(-9.0, 0.0, 1.0)] * (FRONT - len(layers))
        layers += ridges(1, u(.06, .12), 0, .16, .0, .0, freq=2.4, soft=.9, **reach(u(.1, .5)),
                         **(coast | dict(turf=.0, low=mixed(rock[0], (.1, .1, .1), .35))))
        layers += ridges(1, u(-.04, .04), 0, .12, .0, .0, freq=1.6, soft=.6, rough=.9, depth=.2,
                         low=green[0], high=green[1], gain=.4, **reach(u(-.4, .3)))
    elif theme.place == "desert":
        dunes = dict(sharp=.75, gain=.10, skew=1.1, low=sand[0], high=sand[1], rough=.25,
                     ripple=1.0, depth=.35, relief=1.5, snow=0.0)
        far = dict(peaks, low=mixed(rock[0], sand[0], .5), high=mixed(rock[1], sand[0], .5),
                   snow=snow * theme.winter, strata=.6)
        layers = ridges(1, level + .01, 0, .13, .75, .7, freq=1.8, **far)
        layers += ridges(3, level - .02, .05, .11, .5, .2, freq=lambda t: 1.5 - .3 * t, **dunes)
        layers += ridges(3, level - .17, .13, .20, .1, .0, freq=lambda t: .85 - .15 * t, **dunes)
    elif theme.place == "forest":
        layers = ridges(1, level + .08, 0, .26, .80, .75, freq=1.4, **peaks)
        layers += ridges(5, level + .10, .095, .09, .66, .04, freq=lambda t: 1.6 - .6 * t,
                         trees=lambda t: .036 + .15 * t ** 1.5,
                         gap=lambda t: .011 + .042 * t ** 1.5,
                         rows=lambda t: 3.0 - (t > .8), dense=.86, clump=.45,
                         row_drop=lambda t: .014 + .06 * t, depth=lambda t: .14 + .1 * t, **firs)
        layers += ridges(1, level - .44, 0, .09, .0, .0, freq=1.2, low=mixed(green[0], wood[0], .5),
                         high=mixed(green[1], wood[0], .4), gain=.35, rough=.9,
                         bloom=0.0 if theme.winter else u(0, .5))
    else:
        layers = ridges(1, level + .03, 0, .22, .80, .75, freq=1.3, **peaks)
        rolling = dict(sharp=0.0, gain=.30, skew=1.0, rough=.7, relief=1.7, snow=0.0,
                       low=green[0], high=green[1], clump=.9)
        layers += ridges(3, level + .02, .055, .10, .55, .22, freq=1.3, crown=1.0, depth=.2,
                         trees=lambda t: .020 + .016 * t, gap=lambda t: .013 + .012 * t,
                         rows=3.0, row_drop=lambda t: .014 + .010 * t, dense=.22, **rolling)
        layers += ridges(1, level - .16, 0, .13, .1, .1, freq=.9, crown=1.0, depth=.25, rows=2.0,
                         row_drop=.05, dense=.18, trees=u(.06, .10), gap=u(.06, .09), **rolling)
        layers += ridges(1, level - .30, 0, .13, .0, .0, freq=.9, depth=.9,
                         bloom=0.0 if theme.winter else rng.choice((0.0, u(.5, 1.0))), **rolling)
    if theme.framed:
        layers.append(layer(-.20, .08, 1.2, trees=u(.75, .95), gap=u(.13, .17), depth=.3,
                            void=half * u(.56, .66), **firs))
    while len(layers) < LAYERS:
        layers.append(layer(-9.0, 0.0, 1.0))
    scene["layers"] = layers
    scene["grass"] = green[1]
    for name, colour in zip(COLOURS, SKY_COLOURS[theme.time]):
        scene[name] = tuple(c * u(.95, 1.05) for c in colour)
    return scene


def mixed(a: tuple, b: tuple, t: float) -> tuple:
    return tuple(x + (y - x) * t for x, y in zip(a, b))


# ------------------------------------------------------------------------------------- painting

SCENE_FIELDS = ("level", "light_x", "light_y", "aspect", "cover", "night", "day", "glow", "disc",
                "phase", "grade", "water", "wave", "winter")
LAYER_FIELDS = tuple(k for k in layer(0, 0, 0) if k not in ("low", "high"))


def header() -> str:
    """Places of the fields in a scene's row of floats, as `landscape.cu` names them."""
    def places(scalars: tuple, colours: tuple) -> tuple[str, int]:
        at = [(name, i) for i, name in enumerate(scalars)]
        at += [(name, len(scalars) + 3 * i) for i, name in enumerate(colours)]
        return ", ".join(f"{name.upper()} = {i}" for name, i in at), len(scalars) + 3 * len(colours)

    scene, scene_size = places(SCENE_FIELDS, COLOURS)
    layers, layer_size = places(LAYER_FIELDS, ("low", "high"))
    return (f"enum {{ {scene}, LAYER_AT = {scene_size} }};\n"
            f"enum {{ {layers}, LAYER_SIZE = {layer_size} }};\n"
            f"enum {{ LAYERS = {LAYERS}, FRONT = {FRONT}, OCTAVES = {OCTAVES}, "
            f"SCENE_SIZE = {scene_size + LAYERS * layer_size} }};\n")


@dataclass(frozen=True)
class Packed:
    """Scenes as numbers: rows [B,SCENE_SIZE] in the order of `header`, and whole seeds [B]."""

    rows: Tensor
    seeds: Tensor

    def aspects(self) -> Tensor:
        return self.rows[:, SCENE_FIELDS.index("aspect")]


def pack(scenes: list[dict]) -> Packed:
    rows = []
    for scene in scenes:
        numbers = [scene[name] for name in SCENE_FIELDS]
        for name in COLOURS:
            numbers += scene[name]
        for fields in scene["layers"]:
            numbers += [fields[name] for name in LAYER_FIELDS]
            numbers += [*fields["low"], *fields["high"]]
        rows.append(numbers)
    return Packed(torch.tensor(rows, dtype=torch.float32),
                  torch.tensor([s["seed"] for s in scenes], dtype=torch.int32))


class Request(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("scenes", "windows", "seeds", "crests", "out")]
    _fields_ += [(name, ctypes.c_int) for name in ("count", "height", "width")]


@cache
def library(gpu: bool) -> ctypes.CDLL:
    """Compile landscape.cu, once for each version of it."""
    source = header() + Path(__file__).with_name("landscape.cu").read_text()
    folder = Path(tempfile.gettempdir()) / f"landscape-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    stem = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{'gpu' if gpu else 'cpu'}"
    if not stem.with_suffix(".so").exists():
        stem.with_suffix(".cu").write_text(source)
        nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        command = ([nvcc, "-O3", "-arch=native", "-use_fast_math", "-Xcompiler", "-fPIC"] if gpu
                   else ["g++", "-x", "c++", "-O3", "-march=native", "-ffast-math", "-fopenmp",
                         "-fPIC"])
        part = stem.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-shared", "-o", part, stem.with_suffix(".cu")], check=True)
        part.rename(stem.with_suffix(".so"))
    return ctypes.CDLL(str(stem.with_suffix(".so")))


def paint(packed: Packed, left: Tensor, top: Tensor, pixel: Tensor, height: int, width: int,
          device: torch.device | str = "cpu") -> Tensor:
    """Pictures [B,3,height,width] in bytes of the rectangles with upper left corners (left, top).

    left, top, pixel: [B]; pixel is the size of a pixel in scene units.
    """
    count, gpu = len(packed.seeds), torch.device(device).type == "cuda"
    windows = torch.stack([left, top, pixel], 1).float().contiguous()
    rows, windows, seeds = (t.to(device) for t in (packed.rows, windows, packed.seeds))
    crests = torch.empty(count, 2 * width, LAYERS, device=device)
    out = torch.empty(count, 3, height, width, dtype=torch.uint8, device=device)
    request = Request(*(t.data_ptr() for t in (rows, windows, seeds, crests, out)), count, height,
                      width)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if gpu else None)
    if code := library(gpu).paint(request, stream):
        raise RuntimeError(f"painting failed with CUDA error {code}")
    return out
