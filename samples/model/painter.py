"""A painter of landscapes whose pictures are functions of the plane.

A scene is a set of numbers (`compose`); `paint` evaluates it at any rectangle and any resolution.
Nothing is stored as pixels: silhouettes and textures are sums of noise octaves, every octave fades
out where it would fall under the pixel grid, and edges are covered analytically.  A crop at 15x is
therefore the same picture with more detail in it, not an enlargement.

Coordinates: the picture's height is 1, y points up, x = 0 is the middle.  Tensors broadcast as
[batch, rows, columns]; a scene's numbers are [batch, 1, 1] or, for its layers, [batch, layers].
Colours are display values (sRGB) throughout: this is paint, not optics.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PLACES = ("mountains", "lake", "sea", "desert", "forest", "hills")
TIMES = ("dawn", "day", "sunset", "dusk", "night")
SKIES = ("clear", "broken", "cloudy")
PALETTES = ("natural", "warm", "cool", "pastel", "vivid")
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


# ---------------------------------------------------------------------------------------- noise

def hash_int(ix: Tensor, iy: Tensor, seed: Tensor) -> Tensor:
    """Well mixed 32-bit integers from lattice coordinates (int32 arithmetic wraps)."""
    h = ix * 374761393 + iy * 668265263 + seed * -2048144777
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1274126177
    h = (h ^ ((h >> 16) & 0xFFFF)) * -1640531535
    return h ^ ((h >> 15) & 0x1FFFF)


def hash01(ix: Tensor, iy: Tensor, seed: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from lattice coordinates."""
    return (hash_int(ix, iy, seed) & 0xFFFFFF).float() * (1.0 / 16777216.0)


def noise(x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
    """Gradient noise, mean 0, mostly within [-1, 1]; seed is int32 and broadcasts."""
    fx, fy = torch.floor(x), torch.floor(y)
    ix, iy = fx.int(), fy.int()
    fx, fy = x - fx, y - fy

    def corner(dx: int, dy: int) -> Tensor:
        h = hash_int(ix + dx, iy + dy, seed)
        gx = (h & 0xFFFF).float() * (1 / 32768.0) - 1.0
        gy = ((h >> 16) & 0xFFFF).float() * (1 / 32768.0) - 1.0
        return gx * (fx - dx) + gy * (fy - dy)

    ux = fx * fx * fx * (fx * (fx * 6.0 - 15.0) + 10.0)
    uy = fy * fy * fy * (fy * (fy * 6.0 - 15.0) + 10.0)
    low = corner(0, 0) * (1.0 - ux) + corner(1, 0) * ux
    high = corner(0, 1) * (1.0 - ux) + corner(1, 1) * ux
    return 1.7 * (low * (1.0 - uy) + high * uy)


def band(foot: Tensor) -> Tensor:
    """Weight of an octave whose wave spans 1/foot pixels: 1 above five pixels, 0 below two."""
    return torch.clamp((0.5 - foot) * (1.0 / 0.3), 0.0, 1.0)


def fbm(x: Tensor, y: Tensor, foot: Tensor, seed: Tensor, gain: float = 0.5,
        octaves: int = OCTAVES) -> Tensor:
    """Sum of noise octaves; foot is the size of a pixel in units of x (and y)."""
    if x.is_cuda:
        return on_gpu(False, octaves, x, y, foot, seed, x.new_zeros(()), x.new_tensor(gain))
    total, weight = 0.0, .6
    for _ in range(octaves):
        total = total + weight * band(foot) * noise(x, y, seed)
        x, y = 1.6 * x - 1.2 * y + 5.3, 1.2 * x + 1.6 * y - 2.9
        foot, weight, seed = foot * 2.0, weight * gain, seed + 31
    return total


def relief(x: Tensor, y: Tensor, foot: Tensor, seed: Tensor, sharp: Tensor, gain: Tensor
           ) -> Tensor:
    """Terrain in about [0, 1]: sharp 1 makes ridges (mountains, crests), 0 rolling ground.

    Ridges carry more detail than valleys: every octave is weighted by the one before.
    """
    if x.is_cuda:
        return on_gpu(True, OCTAVES, x, y, foot, seed, sharp, gain)
    total, carry, weight = 0.0, 1.0, .6
    for _ in range(OCTAVES):
        n = noise(x, y, seed)
        ridge = (1.0 - torch.sqrt(n * n + 6e-4)) ** 2
        value = sharp * ridge + (1.0 - sharp) * (0.5 + 0.55 * n)
        total = total + weight * carry * (0.4 + band(foot) * (value - 0.4))
        carry = torch.clamp(0.25 + 1.1 * value, 0.0, 1.0)
        x, y = 1.6 * x - 1.2 * y + 5.3, 1.2 * x + 1.6 * y - 2.9
        foot, weight, seed = foot * 2.0, weight * gain, seed + 31
    return total


def on_gpu(ridged: bool, octaves: int, *inputs: Tensor) -> Tensor:
    """Launch the fused form of relief (ridged) or fbm: x, y, foot, seed, sharp, gain."""
    inputs = [t.contiguous() for t in torch.broadcast_tensors(*inputs)]
    out = torch.empty_like(inputs[0])
    grid = (triton.cdiv(out.numel(), 512),)
    octave_sum[grid](*inputs, out, out.numel(), ridged, octaves, 512)
    return out


@triton.jit
def corner_slope(ix, iy, seed, fx, fy):
    """One corner's share of gradient noise; the same arithmetic as `noise`."""
    h = ix * 374761393 + iy * 668265263 + seed * -2048144777
    h = (h ^ ((h >> 13) & 0x7FFFF)) * 1274126177
    h = (h ^ ((h >> 16) & 0xFFFF)) * -1640531535
    h = h ^ ((h >> 15) & 0x1FFFF)
    gx = (h & 0xFFFF).to(tl.float32) * (1 / 32768.0) - 1.0
    gy = ((h >> 16) & 0xFFFF).to(tl.float32) * (1 / 32768.0) - 1.0
    return gx * fx + gy * fy


@triton.jit
def octave_sum(x_at, y_at, foot_at, seed_at, sharp_at, gain_at, out_at, count,
               ridged: tl.constexpr, octaves: tl.constexpr, size: tl.constexpr):
    """`relief` and `fbm` for a GPU: all octaves of a pixel in registers."""
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    live = at < count
    x, y = tl.load(x_at + at, live), tl.load(y_at + at, live)
    foot, seed = tl.load(foot_at + at, live), tl.load(seed_at + at, live)
    sharp, gain = tl.load(sharp_at + at, live), tl.load(gain_at + at, live)
    total = tl.zeros([size], tl.float32)
    carry = total + 1.0
    weight = total + 0.6
    for _ in range(octaves):
        fx, fy = tl.floor(x), tl.floor(y)
        ix, iy = fx.to(tl.int32), fy.to(tl.int32)
        fx, fy = x - fx, y - fy
        ux = fx * fx * fx * (fx * (fx * 6.0 - 15.0) + 10.0)
        uy = fy * fy * fy * (fy * (fy * 6.0 - 15.0) + 10.0)
        low = corner_slope(ix, iy, seed, fx, fy) * (1.0 - ux)
        low += corner_slope(ix + 1, iy, seed, fx - 1.0, fy) * ux
        high = corner_slope(ix, iy + 1, seed, fx, fy - 1.0) * (1.0 - ux)
        high += corner_slope(ix + 1, iy + 1, seed, fx - 1.0, fy - 1.0) * ux
        n = 1.7 * (low * (1.0 - uy) + high * uy)
        seen = tl.minimum(tl.maximum((0.5 - foot) * (1.0 / 0.3), 0.0), 1.0)
        if ridged:
            ridge = 1.0 - tl.sqrt(n * n + 6e-4)
            value = sharp * ridge * ridge + (1.0 - sharp) * (0.5 + 0.55 * n)
            total += weight * carry * (0.4 + seen * (value - 0.4))
            carry = tl.minimum(tl.maximum(0.25 + 1.1 * value, 0.0), 1.0)
        else:
            total += weight * seen * n
        turned = 1.6 * x - 1.2 * y + 5.3
        y = 1.2 * x + 1.6 * y - 2.9
        x = turned
        foot, weight, seed = foot * 2.0, weight * gain, seed + 31
    tl.store(out_at + at, total, live)


def smooth(a: float | Tensor, b: float | Tensor, x: Tensor) -> Tensor:
    """Smooth step from 0 at a to 1 at b."""
    t = torch.clamp((x - a) / (b - a), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return a + (b - a) * t


# ---------------------------------------------------------------------------------- composition

SKY_COLOURS = {  # zenith, middle, horizon, light, ambient, cloud in light, cloud in shade
    "dawn": ((.40, .55, .78), (.88, .74, .80), (1.0, .84, .68), (1.0, .82, .64), (.50, .48, .62),
             (1.0, .84, .78), (.72, .64, .78)),
    "day": ((.11, .38, .76), (.40, .67, .92), (.84, .93, .96), (1.0, .96, .86), (.44, .53, .68),
            (1.0, 1.0, 1.0), (.72, .80, .90)),
    "sunset": ((.20, .17, .40), (.80, .33, .33), (1.0, .70, .30), (1.0, .60, .30),
               (.36, .24, .38), (1.0, .58, .34), (.48, .24, .38)),
    "dusk": ((.09, .10, .30), (.33, .24, .52), (.84, .50, .56), (.62, .42, .58), (.24, .22, .42),
             (.62, .38, .58), (.23, .18, .38)),
    "night": ((.015, .030, .10), (.045, .095, .23), (.14, .25, .42), (.40, .52, .74),
              (.090, .130, .25), (.26, .34, .52), (.07, .11, .22)),
}
ROCKS = (((.34, .32, .36), (.52, .48, .48)), ((.40, .30, .27), (.60, .46, .38)),
         ((.26, .30, .36), (.44, .48, .52)))
SANDS = (((.86, .62, .36), (.97, .79, .52)), ((.78, .42, .24), (.92, .58, .34)),
         ((.88, .74, .54), (.98, .88, .70)))
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
    strata: horizontal beds of rock.  ripple: wind ripples of sand.  bloom: flowers.
    """
    out = dict(base=base, amp=amp, freq=freq, sharp=0.0, gain=.45, skew=.6, haze=0.0, mist=0.0,
               snow=0.0, rough=.5, trees=0.0, gap=.03, crown=0.0, left=-9.0, right=9.0, soft=.2,
               void=-1.0, strata=0.0, ripple=0.0, bloom=0.0, depth=.3, relief=1.0,
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
        layers += ridges(2, level - .17, .07, .09, .20, .10, freq=1.4, depth=.2,
                         trees=lambda t: .04 + .03 * t, gap=lambda t: .013 + .009 * t, **firs)
        layers += ridges(1, level - .34, .06, .10, .0, .0, freq=1.1, low=green[0], high=green[1],
                         gain=.35, rough=.9, depth=.9, bloom=0.0 if theme.winter else u(0, .6))
    elif theme.place == "lake":
        scene.update(water=level - .01, wave=u(.1, .35))
        layers = ridges(2, level + .02, .02, .28, .78, .58, freq=1.5, **peaks)
        layers += ridges(2, level - .01, .03, .28, .42, .22, freq=1.1, **peaks)
        layers += ridges(2, level + .005, .012, .04, .22, .10, freq=1.8, depth=.06,
                         trees=lambda t: .034 + .014 * t, gap=lambda t: .010 + .004 * t, **firs)
        shore = rng.choice(((-9.0, -half + u(.35, .7) * half), (half - u(.35, .7) * half, 9.0),
                            (-9.0, 9.0)))
        layers += ridges(1, u(.0, .05), .05, .12, .0, .0, freq=1.3, low=green[0], high=green[1],
                         gain=.4, rough=.9, depth=.2, left=shore[0], right=shore[1], soft=.5)
    elif theme.place == "sea":
        scene.update(water=level, wave=u(.5, 1.0))
        cape = rng.choice((-1, 1))
        coast = dict(sharp=.6, gain=.5, low=rock[0], high=rock[1], snow=snow * theme.winter,
                     strata=u(.3, .9), depth=.25, skew=.35)

        def reach(at: float) -> dict:
            edge = half * at
            return dict(left=-9.0, right=-edge) if cape < 0 else dict(left=edge, right=9.0)
        island = u(-.5, .5) * half
        layers = ridges(1, level - .02, 0, .10, .72, .7, freq=2.2, left=island - .18,
                        right=island + .18, soft=.22, **coast)
        layers += ridges(1, level + .03, 0, .13, .58, .5, freq=1.6, soft=.12, **reach(.0), **coast)
        layers += ridges(1, level + .07, 0, .16, .36, .3, freq=1.4, soft=.10, **reach(.3), **coast)
        layers += ridges(1, level + .09, 0, .22, .15, .1, freq=1.2, soft=.08, **reach(.58), **coast)
        layers += [layer(-9.0, 0.0, 1.0)] * (FRONT - len(layers))
        coast["low"], coast["high"] = mixed(rock[0], (.1, .1, .1), .35), rock[1]
        layers += ridges(1, level - .05, 0, .22, .0, .0, freq=1.2, soft=.22, **reach(u(.62, .8)),
                         **coast)
        layers += ridges(1, u(-.08, .0), 0, .14, .0, .0, freq=1.6, soft=.5, rough=.8, depth=.2,
                         low=green[0], high=green[1], gain=.4, **reach(u(-.2, .5)))
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
                         trees=lambda t: .04 + .17 * t ** 1.4, gap=lambda t: .012 + .045 * t ** 1.4,
                         depth=lambda t: .14 + .1 * t, **firs)
        layers += ridges(1, level - .44, 0, .09, .0, .0, freq=1.2, low=mixed(green[0], wood[0], .5),
                         high=mixed(green[1], wood[0], .4), gain=.35, rough=.9,
                         bloom=0.0 if theme.winter else u(0, .5))
    else:
        layers = ridges(1, level + .03, 0, .22, .80, .75, freq=1.3, **peaks)
        rolling = dict(sharp=0.0, gain=.28, skew=.9, rough=.6, relief=1.2, snow=0.0,
                       low=green[0], high=green[1])
        layers += ridges(3, level + .02, .055, .09, .55, .25, freq=1.3, crown=1.0, depth=.2,
                         trees=lambda t: .018 + .02 * t, gap=lambda t: .05 + .05 * t, **rolling)
        layers += ridges(1, level - .17, 0, .12, .1, .1, freq=.9, crown=1.0, depth=.25,
                         trees=u(.06, .09), gap=u(.22, .34), **rolling)
        layers += ridges(1, level - .30, 0, .12, .0, .0, freq=.9, depth=.9,
                         bloom=0.0 if theme.winter else rng.choice((0.0, u(.5, 1.0))), **rolling)
    if theme.framed:
        layers.append(layer(-.20, .08, 1.2, trees=u(.75, .95), gap=u(.13, .17), depth=.3,
                            void=half * u(.56, .66), **firs))
    while len(layers) < LAYERS:
        layers.append(layer(-9.0, 0.0, 1.0))
    scene["layers"] = layers
    for name, colour in zip(("zenith", "middle", "horizon", "light", "ambient", "cloud", "shade"),
                            SKY_COLOURS[theme.time]):
        scene[name] = tuple(c * u(.95, 1.05) for c in colour)
    return scene


def mixed(a: tuple, b: tuple, t: float) -> tuple:
    return tuple(x + (y - x) * t for x, y in zip(a, b))


# ------------------------------------------------------------------------------------- painting

class Batch:
    """Scenes as tensors: scalars [B,1,1], colours [B,3,1,1], `layers` a list of the same."""

    def __init__(self, scenes: list[dict], device: torch.device | str):
        for name in scenes[0]:
            if name != "layers":
                setattr(self, name, self._rows([s[name] for s in scenes], device))
        self.seed = self.seed.int()
        self.layers = [{name: self._rows([s["layers"][k][name] for s in scenes], device)
                        for name in scenes[0]["layers"][k]} for k in range(LAYERS)]
        for k, fields in enumerate(self.layers):
            fields["seed"] = self.seed + 7919 * (k + 1)
            fields["wooded"] = any(s["layers"][k]["trees"] > 0 for s in scenes)
            fields["blooms"] = any(s["layers"][k]["bloom"] > 0 for s in scenes)

    @staticmethod
    def _rows(values: list, device: torch.device | str) -> Tensor:
        rows = torch.tensor(values, device=device)
        rows = rows.float() if rows.is_floating_point() else rows
        return rows.view(len(values), *rows.shape[1:], 1, 1)


def paint(scenes: list[dict], left: Tensor, top: Tensor, pixel: Tensor, height: int, width: int,
          device: torch.device | str = "cpu") -> Tensor:
    """Pictures [B,3,height,width] in [0,1] of the rectangles with upper left corners (left, top).

    left, top, pixel: [B]; pixel is the size of a pixel in scene units.
    """
    s = Batch(scenes, device)
    px = pixel.to(device).view(-1, 1, 1)
    x = left.to(device).view(-1, 1, 1) + px * (torch.arange(width, device=device) + .5)
    y = top.to(device).view(-1, 1, 1) - px * (torch.arange(height, device=device) + .5)[:, None]
    below = torch.clamp(s.water - y, min=0.0)
    swell = waves(x, below, px, s.seed)
    wet = torch.clamp((s.water - y) / px + .5, 0.0, 1.0)
    far_y = torch.where(y < s.water, s.water + below + s.wave * swell * (.004 + .16 * below), y)

    crests = [crest(f, x, px) for f in s.layers]
    near_y = y + torch.zeros_like(far_y)
    heights = [far_y if k < FRONT else near_y for k in range(LAYERS)]
    light, grain, patch = ground(s, x, heights, crests, px)

    colour = sky(s, x, far_y, px, wet)
    for k in range(LAYERS):
        if k == FRONT:
            colour = water(s, x, below, wet, swell, colour)
        f = s.layers[k]
        if f["wooded"]:
            colour = draw_trees(s, f, tree_row(f, x, px), x, heights[k], px,
                                fringe(f, x, heights[k], px), colour)
        colour = draw_ground(s, f, x, heights[k], px, crests[k], light, grain, patch, colour)
    return grade(colour, s.grade[:, None])


def crest(f: dict, x: Tensor, px: Tensor) -> Tensor:
    """Height [B,1,W] of a layer's silhouette at x [B,1,W]."""
    rise = relief(x * f["freq"], torch.zeros_like(x), px * f["freq"], f["seed"], f["sharp"],
                  f["gain"])
    inside = smooth(0.0, 1.0, (x - f["left"]) / f["soft"] + .5)
    inside = inside * smooth(0.0, 1.0, (f["right"] - x) / f["soft"] + .5)
    inside = inside * smooth(-.05, .05, x.abs() - f["void"])
    fur = fbm(x * 90.0, x * 0.0, px * 90.0, f["seed"] + 3, .7, 6) * f["rough"] * .0022
    return f["base"] + f["amp"] * 1.6 * (rise - .35) + fur - .5 * (1.0 - inside)


def ground(s: Batch, x: Tensor, heights: list, crests: list, px: Tensor) -> tuple:
    """Light, fine grain and coarse patches [B,H,W] of whichever layer each pixel shows."""
    shown = {name: s.layers[0][name] for name in ("freq", "sharp", "gain", "skew", "seed")}
    depth = torch.zeros_like(heights[0] * x)
    for f, y, top in zip(s.layers, heights, crests):
        mine = y < top
        depth = torch.where(mine, top - y, depth)
        shown = {name: torch.where(mine, f[name], old) for name, old in shown.items()}
    freq, foot, seed = shown["freq"], px * shown["freq"], shown["seed"]
    u, w = x * freq, depth * freq * shown["skew"]
    soft_gain = shown["gain"] * .84
    step = torch.clamp(.8 * foot, min=2e-3)
    here = relief(u, w, foot, seed, shown["sharp"], soft_gain)
    across = (relief(u + step, w, foot, seed, shown["sharp"], soft_gain) - here) / step
    down = (relief(u, w + step, foot, seed, shown["sharp"], soft_gain) - here) / step
    sun_side = torch.tanh(2.5 * (s.light_x - x))
    light = torch.tanh(-1.1 * across * sun_side - .45 * down)
    grain = .7 * fbm(u * 15.0, w * 9.0, foot * 15.0, seed + 501, .76, 8)
    patch = fbm(u * 1.7 + 3.0, w * 2.6, foot * 2.6, seed + 777, .5, 9)
    return light, grain, patch


def haze_colour(s: Batch, x: Tensor) -> Tensor:
    """Colour [B,3,1,W] of the air between the layers, brighter under the sun."""
    near = torch.exp(-2.2 * (x - s.light_x).abs())[:, None] * s.glow[:, None]
    air = mix(s.horizon, s.middle, .35)
    return air + .16 * near * s.light


def draw_ground(s: Batch, f: dict, x: Tensor, y: Tensor, px: Tensor, top: Tensor, light: Tensor,
                grain: Tensor, patch: Tensor, colour: Tensor) -> Tensor:
    """Lay the ground of one layer over colour [B,3,H,W]."""
    depth = torch.clamp(top - y, min=0.0)
    cover = torch.clamp((top - y) / px + .5, 0.0, 1.0)
    fine = f["rough"] * grain
    beds = fbm(depth * 26.0 + .8 * patch, x * .7 + 9.0, px, f["seed"] + 61, octaves=1)
    beds = 1.7 * beds * f["strata"]
    albedo = mix(f["low"], f["high"], (.5 + .55 * patch + .25 * fine)[:, None].clamp(0.0, 1.0))
    albedo = albedo * (1.0 + .22 * beds + .22 * fine)[:, None]
    altitude = (y - f["base"]) / torch.clamp(f["amp"], min=.01)
    snow = smooth(-.10, .10, altitude + .35 * patch + .18 * grain - 1.0 + 1.1 * f["snow"])
    snow = snow * smooth(0.0, .05, f["snow"]) * smooth(-1.0, -.2, light + .5 * f["snow"])
    albedo = mix(albedo, torch.tensor(SNOW[1], device=x.device).view(1, 3, 1, 1), snow[:, None])
    lit = .5 + .5 * (light * f["relief"] + .12 * fine).clamp(-1.0, 1.0)
    furrow = f["ripple"] * band(px * 150.0) * torch.sin(
        400.0 * depth + 90.0 * x + 9.0 * patch) * .10
    lit = (lit + furrow).clamp(0.0, 1.0)
    shade = albedo * (.78 * s.ambient + .80 * s.light * lit[:, None])
    if f["blooms"]:
        shade = flowers(s, f, x, depth, px, patch, shade, lit)
    veil = f["haze"] + (1.0 - f["haze"]) * f["mist"] * smooth(0.0, 1.0, depth / f["depth"])
    shade = mix(shade, haze_colour(s, x), veil[:, None])
    return mix(colour, shade, cover[:, None])


def flowers(s: Batch, f: dict, x: Tensor, depth: Tensor, px: Tensor, patch: Tensor,
            shade: Tensor, lit: Tensor) -> Tensor:
    """Scatter flowers over the near ground in drifts; they are smaller towards its crest."""
    size = .020
    gy = torch.log2(depth + .06) * 9.0
    iy = torch.floor(gy).int()
    gx = x / size + 9.0 * hash01(iy, iy, s.seed + 10)
    ix = torch.floor(gx).int()
    pick = hash01(ix, iy, s.seed + 11)
    dx = (gx - ix - .3 - .4 * hash01(ix, iy, s.seed + 12)) * size
    dy = (gy - iy - .3 - .4 * hash01(ix, iy, s.seed + 13)) * (depth + .06) * .077
    radius = (.0030 + .012 * depth) * (1.0 + .22 * torch.cos(5.0 * torch.atan2(dy, dx + 1e-9)
                                                             + 6.3 * pick))
    away = torch.sqrt(dx * dx + 2.0 * dy * dy + 1e-12)
    drift = smooth(-.25, .35, patch)
    cover = torch.clamp((radius - away) / px + .5, 0.0, 1.0) * (pick < .8 * f["bloom"] * drift)
    hue = hash01(ix, iy, s.seed + 14)[:, None]
    kind = (s.seed[:, None] & 1).float()
    petal = torch.cat([.95 - .25 * kind * hue, .80 - .55 * hue, .30 + .55 * kind + .05 * hue], 1)
    heart = torch.clamp((.3 * radius - away) / px + .5, 0.0, 1.0)[:, None]
    petal = petal * (1.0 - .45 * heart) * (.8 * s.ambient + .7 * s.light * lit[:, None])
    return mix(shade, petal, .9 * cover[:, None])


def tree_row(f: dict, x: Tensor, px: Tensor) -> list[tuple]:
    """The three trees that can cover a column: middle, foot, size and chance, each [B,1,W]."""
    cell, seed, row = torch.floor(x / f["gap"]), f["seed"] + 104729, []
    for j in (-1, 0, 1):
        i = (cell + j).int()
        middle = (cell + j + .5 + .7 * (hash01(i, i, seed + 1) - .5)) * f["gap"]
        size = torch.clamp(f["trees"], min=1e-3) * (.5 + .5 * hash01(i, i, seed + 2))
        chance = hash01(i, i, seed + 3)
        row.append((middle, crest(f, middle, px) - .03 * size, size, chance))
    return row


def fringe(f: dict, x: Tensor, y: Tensor, px: Tensor) -> Tensor:
    """Noise [B,H,W] in the scale of a layer's trees, for the outlines of twigs and leaves."""
    scale = 11.0 / torch.clamp(f["trees"], min=1e-3)
    return fbm(x * scale, y * scale, px * scale, f["seed"] + 5, .7, 7)


def draw_trees(s: Batch, f: dict, row: list[tuple], x: Tensor, y: Tensor, px: Tensor,
               twigs: Tensor, colour: Tensor) -> Tensor:
    """Stand trees on the crest of a layer, one in each cell of a jittered row."""
    cover, tone = torch.zeros_like(x * y), torch.zeros_like(x * y)
    for middle, foot, size, chance in row:
        t, dx = (foot + size - y) / size, (x - middle) / size
        fir, fir_tone = fir_shape(t, dx, twigs, chance)
        oak, oak_tone = oak_shape(t, dx, twigs)
        part = torch.clamp(mix(fir, oak, f["crown"]) * size / px + .5, 0.0, 1.0)
        part = part * (chance < .93) * (f["trees"] > 0)
        here = mix(fir_tone, oak_tone, f["crown"]) + .5 * (chance - .5)
        here = here + .9 * dx * torch.tanh(9.0 * (s.light_x - x))
        tone = torch.where(part > cover, here, tone)
        cover = torch.maximum(cover, part)
    wood = mix(f["low"], f["high"], (.45 + .9 * tone + .3 * twigs)[:, None].clamp(0.0, 1.0))
    frost = s.winter * smooth(.0, .5, tone + .4 * twigs)
    wood = mix(wood, torch.tensor(SNOW[0], device=x.device).view(1, 3, 1, 1), .75 * frost[:, None])
    wood = wood * (.9 * s.ambient + .55 * s.light * (.6 + .8 * tone)[:, None].clamp(0.0, 1.2))
    wood = mix(wood, haze_colour(s, x), f["haze"][:, None])
    return mix(colour, wood, cover[:, None])


def fir_shape(t: Tensor, dx: Tensor, twigs: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """How far inside a fir (t: 0 top, 1 foot; dx in tree heights) a point lies, and its tone."""
    tier = t * (7.0 + 3.0 * odd) + 9.0 * dx.abs() + odd
    drop = tier - torch.floor(tier)
    width = .21 * torch.clamp(t, 0.0, 1.0) ** .9 * (.52 + .48 * drop + .30 * twigs) + .004
    return torch.minimum(width - dx.abs(), t), .42 - .55 * drop


def oak_shape(t: Tensor, dx: Tensor, twigs: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a round crown on a short trunk."""
    ball = .40 + .10 * twigs - torch.sqrt(dx * dx * 1.1 + (t - .42) ** 2 + 1e-8)
    trunk = torch.minimum(.030 - dx.abs(), t - .5)
    return torch.maximum(ball, trunk), .35 - .75 * t


def waves(x: Tensor, below: Tensor, px: Tensor, seed: Tensor) -> Tensor:
    """Swell [B,H,W] of a water plane seen in perspective; calm towards the horizon."""
    near = 1.0 / (below + .05)
    foot = px * near * near * 1.6
    return fbm(x * near * 1.1, near * 1.6 * torch.ones_like(x), foot, seed + 4001, .62, 9)


def water(s: Batch, x: Tensor, below: Tensor, wet: Tensor, swell: Tensor,
          mirrored: Tensor) -> Tensor:
    """Tint what is mirrored [B,3,H,W] into water: depth, whitecaps, the path of the light."""
    deep = s.day[:, None] * torch.tensor((.03, .26, .36), device=x.device).view(1, 3, 1, 1)
    deep = deep + (1.0 - s.day[:, None]) * (.5 * s.zenith + .12 * s.middle)
    own = (.12 + .55 * smooth(0.0, .5, below) + .16 * s.wave)[:, None]
    colour = mix(mirrored, deep, own) * (1.0 + .30 * s.wave * swell)[:, None]
    width = .05 + .35 * below
    path = torch.exp(-((x - s.light_x) / width) ** 2) * smooth(-.05, .45, swell + .1)
    colour = colour + (.75 * s.glow * path)[:, None] * s.light
    foam = smooth(.42, .62, swell) * s.wave * smooth(.01, .08, below)
    colour = mix(colour, s.cloud, .55 * foam[:, None])
    return mix(mirrored, colour, wet[:, None])


def sky(s: Batch, x: Tensor, y: Tensor, px: Tensor, wet: Tensor) -> Tensor:
    """Sky colours [B,3,H,W]: gradient, glow, stars, disc and clouds."""
    rise = torch.clamp((y - s.level) / (1.0 - s.level), min=0.0)[:, None]
    colour = mix(s.horizon, s.middle, smooth(0.0, .45, rise))
    colour = mix(colour, s.zenith, smooth(.2, 1.05, rise))
    away = torch.sqrt((x - s.light_x) ** 2 + (y - s.light_y) ** 2 + 1e-9)
    halo = .42 * torch.exp(-3.2 * away) + .30 * torch.exp(-40.0 * away * away)
    colour = colour + (s.glow * halo)[:, None] * s.light
    stars = star_field(s, x, y, px) * s.night * (1.0 - wet)
    colour = colour + stars[:, None] * smooth(.05, .4, rise)
    disc = torch.clamp((s.disc - away) / torch.clamp(px, min=.0015) + .5, 0.0, 1.0)
    spots = fbm((x - s.light_x) * 30.0, (y - s.light_y) * 30.0, px * 30.0, s.seed + 5, .55, 7)
    lune = smooth(-.9, .35, ((x - s.light_x) * s.phase + (y - s.light_y) * .5) / s.disc)
    moon = (.80 + .16 * spots) * (.2 + .8 * lune)
    face = torch.cat([moon[:, None] * c for c in (1.0, .98, .90)], 1)
    sun = torch.maximum(colour + .3, s.light * .4 + .9)
    colour = mix(colour, mix(sun, face, s.night[:, None]), disc[:, None])
    return clouds(s, x, y, px, away, colour, rise)


def star_field(s: Batch, x: Tensor, y: Tensor, px: Tensor) -> Tensor:
    """Brightness [B,H,W] of stars: one at most in each cell of two lattices."""
    total = torch.zeros_like(x * y)
    for cells, share, seed in ((16.0, .45, 40), (38.0, .30, 50)):
        gx, gy = x * cells, y * cells
        ix, iy = torch.floor(gx).int(), torch.floor(gy).int()
        dx = (gx - ix - .2 - .6 * hash01(ix, iy, s.seed + seed)) / cells
        dy = (gy - iy - .2 - .6 * hash01(ix, iy, s.seed + seed + 1)) / cells
        size = .0011 + .0014 * hash01(ix, iy, s.seed + seed + 2) ** 3
        seen = torch.maximum(size, .75 * px)
        spark = torch.exp(-(dx * dx + dy * dy) / (seen * seen)) * (size / seen) ** 1.5
        total = total + spark * (hash01(ix, iy, s.seed + seed + 3) < share)
    return total


def clouds(s: Batch, x: Tensor, y: Tensor, px: Tensor, away: Tensor, colour: Tensor,
           rise: Tensor) -> Tensor:
    """Lay clouds, a flat deck seen in perspective and lit from the light's side, over the sky."""
    near = 1.0 / (torch.clamp(y - s.level, min=0.0) + .16)
    u, v = x * near * .75, near * .95 * torch.ones_like(x)
    foot = px * near * torch.clamp(near * .95, min=.75)
    thick = fbm(u, v, foot, s.seed + 901, .52, 10)
    toward = torch.tanh(3.0 * (s.light_x - x))
    thin = fbm(u + .16 * toward, v - .12, foot, s.seed + 901, .52, 10)
    cover = smooth(.42 - .80 * s.cover, .78 - .70 * s.cover, thick + .20)
    lit = (.58 + 1.5 * (thick - thin) - .22 * cover * s.cover).clamp(0.0, 1.0)
    tint = mix(s.shade, s.cloud, lit[:, None])
    tint = tint + (.30 * s.glow * torch.exp(-3.0 * away) * lit)[:, None] * s.light
    return mix(colour, tint, (.94 * cover)[:, None] * smooth(0.0, .12, rise))


def grade(colour: Tensor, palette: Tensor) -> Tensor:
    """Give the picture its palette and keep it in [0,1] with a soft shoulder."""
    grey = (colour * torch.tensor((.30, .59, .11), device=colour.device).view(1, 3, 1, 1)).sum(
        1, keepdim=True)

    def tinted(r: float, g: float, b: float) -> Tensor:
        return colour * torch.tensor((r, g, b), device=colour.device).view(1, 3, 1, 1)

    chalk = torch.tensor((.25, .22, .28), device=colour.device).view(1, 3, 1, 1)
    graded = (colour, tinted(1.10, .97, .76), tinted(.80, .98, 1.16),
              chalk + .74 * mix(grey, colour, .72), mix(grey, colour, 1.40))
    for index, look in enumerate(graded):
        colour = torch.where(palette == index, look, colour)
    colour = torch.clamp(colour, min=0.0)
    return torch.where(colour < .8, colour, 1.0 - .2 * torch.exp(-(colour - .8) / .2))
