"""What the shipped model can do: losses on held-out pictures, the words test, the tile test.

Writes `evaluation.json` with every number and pictures for the eye into the work folder.
Attributes are measured in the pixels, by rules that painted pictures confirm: no other model
judges.
"""
from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor

import captions
import painter
from data import (AXES, DEVICE, SHAPES, T5_LENGTH, Drawer, Encoder, Pool, Source, Words, autocast,
                  draw_batch, enlarged, paint_tiles, psnr, save_grid, sent, view)
from network import pack, rope_table, unpack
from train import Flow, check_vae, load_exported, load_vae, log, tile_loss, view_loss

# ------------------------------------------------------------------------------------- inference


def shifted(steps: int, tokens: int, start: float = 1.0) -> list[float]:
    """The program's schedule: from noise level start to 0, bent by FLUX.1's shift."""
    bend = math.exp(.5 + (tokens - 256) * .65 / 3840)
    first = start / (start + (1.0 - start) * bend)
    times = [first * (1.0 - i / steps) for i in range(steps)]
    return [t / (t + (1.0 - t) / bend) for t in times] + [0.0]


@torch.no_grad()
def euler(model: Flow, x: Tensor, sigmas: list[float], guidance: float, ids: tuple, rope: Tensor
          ) -> Tensor:
    """Follow the velocity from sigmas[0] to the last; x [B,N,64]."""
    g = torch.full((len(x),), guidance, device=DEVICE)
    for now, then in zip(sigmas, sigmas[1:]):
        with autocast():
            v = model(x, torch.full_like(g, now), g, *ids, rope)
        x = x + (then - now) * v.float()
    return x


class Artist:
    """The averaged model with everything it needs to paint."""

    def __init__(self, model: Flow, encoder: Encoder, words: Words, steps: int):
        self.model, self.encoder, self.words, self.steps = model, encoder, words, steps

    def drafts(self, texts: list[str], seeds: list[int], guidance: float = 3.0) -> Tensor:
        """Wide pictures [B,3,h,w] in [-1,1] from captions."""
        rows, columns = (v // 16 for v in SHAPES["wide"])
        noise = torch.stack([torch.randn(16, 2 * rows, 2 * columns,
                                         generator=torch.Generator().manual_seed(s))
                             for s in seeds])
        rope, out = rope_table(rows, columns, T5_LENGTH, AXES, DEVICE), []
        sigmas = shifted(self.steps, rows * columns)
        for part, some in zip(pack(noise).to(DEVICE).split(32), range(0, len(texts), 32)):
            ids = self.words.encode(texts[some:some + 32])
            x = euler(self.model, part, sigmas, guidance, ids, rope)
            out.append(self.encoder("decode", unpack(x, rows, columns)).clamp(-1, 1))
        return torch.cat(out)

    def refine(self, soft: Tensor, texts: list[str], sigma: float, steps: int,
               guidance: float = 3.0) -> Tensor:
        """Tiles [B,3,side,side] in [-1,1] from latents of enlarged drafts [B,16,side/8,side/8]."""
        torch.manual_seed(0)
        side, out = SHAPES["tile"][0] // 16, []
        rope = rope_table(side, side, T5_LENGTH, AXES, DEVICE)
        for some in range(0, len(soft), 16):
            z = pack(soft[some:some + 16])
            x = z + sigma * (torch.randn(z.shape).to(DEVICE) - z)
            ids = self.words.encode(texts[some:some + 16])
            x = euler(self.model, x, shifted(steps, side * side, sigma), guidance, ids, rope)
            out.append(self.encoder("decode", unpack(x, side, side)).clamp(-1, 1))
        return torch.cat(out)


# ------------------------------------------------------------------------------------ attributes

def light_of(pictures: Tensor) -> Tensor:
    """Luminance [B,h,w] of pictures [B,3,h,w] in [-1,1], 0 to 1."""
    weights = torch.tensor((.30, .59, .11), device=pictures.device).view(3, 1, 1)
    return ((pictures + 1) / 2 * weights).sum(1)


def sky_light(pictures: Tensor) -> Tensor:
    """Mean luminance [B] of the upper fifth."""
    return light_of(pictures)[:, :pictures.shape[2] // 5].mean((1, 2))


def lower_third(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return ((pictures[:, :, -pictures.shape[2] // 3:] + 1) / 2).unbind(1)


def sand_share(pictures: Tensor) -> Tensor:
    """Share [B] of the lower third that is sand-coloured: red over green over blue."""
    r, g, b = lower_third(pictures)
    return ((r > 1.10 * g) & (g > 1.08 * b)).float().mean((1, 2))


def water_share(pictures: Tensor) -> Tensor:
    """Share [B] of the lower third that is water-coloured by day: blue over green over red."""
    r, g, b = lower_third(pictures)
    return ((b > 1.04 * g) & (g > 1.02 * r)).float().mean((1, 2))


def snow_share(pictures: Tensor) -> Tensor:
    """Share [B] of the lower half that is nearly grey and bright for its picture."""
    low = (pictures[:, :, pictures.shape[2] // 2:] + 1) / 2
    light = light_of(pictures)[:, pictures.shape[2] // 2:]
    spread = low.amax(1) - low.amin(1)
    return ((light > .5) & (spread < .22)).float().mean((1, 2))


SHARES = {"sand": sand_share, "water": water_share, "snow": snow_share, "sky_light": sky_light}


def features(pictures: Tensor) -> Tensor:
    """What the judge sees of pictures [B,3,h,w]: 9x16 blocks of colour and of edges."""
    colour = F.adaptive_avg_pool2d(pictures, (9, 16))
    grey = pictures.mean(1, keepdim=True)
    edges = torch.cat([F.pad(grey.diff(dim=-1), (0, 1)), F.pad(grey.diff(dim=-2), (0, 0, 0, 1))], 1)
    edges = F.adaptive_avg_pool2d(edges.abs(), (9, 16)) * 6.0
    return torch.cat([colour, edges], 1).flatten(1)


class Judge:
    """Names place and time of a picture by ridge regression on painted pictures."""

    @torch.no_grad()
    def __init__(self, count: int):
        themes, pictures = self.painted(Drawer(424242), count)
        seen = features(pictures)
        self.shift, self.size = seen.mean(0), seen.std(0) + 1e-3
        inputs = self.inputs(pictures)
        gram = inputs.T @ inputs + .02 * len(inputs) * torch.eye(inputs.shape[1], device=DEVICE)
        self.heads = {}
        for kind, names in (("place", painter.PLACES), ("time", painter.TIMES)):
            labels = torch.tensor([names.index(getattr(t, kind)) for t in themes], device=DEVICE)
            self.heads[kind] = torch.linalg.solve(gram, inputs.T @ F.one_hot(
                labels, len(names)).float()), names

    @staticmethod
    def painted(drawer: Drawer, count: int) -> tuple[list, Tensor]:
        themes, pictures = [], []
        while len(themes) < count:
            some, scenes = drawer.scenes(min(64, count), 16 / 9)
            themes += some
            pictures.append(view(scenes, *SHAPES["wide"]))
        return themes, torch.cat(pictures)

    def inputs(self, pictures: Tensor) -> Tensor:
        seen = (features(pictures) - self.shift) / self.size
        return torch.cat([seen, torch.ones(len(seen), 1, device=DEVICE)], 1)

    def names(self, kind: str, pictures: Tensor) -> list[str]:
        weights, names = self.heads[kind]
        return [names[i] for i in (self.inputs(pictures) @ weights).argmax(1).tolist()]


# ----------------------------------------------------------------------------------------- tests

def held_out(a: argparse.Namespace, artist: Artist, count: int) -> dict:
    """Losses of the training's own kind on pictures that no training drew."""
    source, facts = Source(a.model, 987654, {}, min(count, 32)), {}
    blank = artist.words.encode([""])
    torch.manual_seed(1)
    for name in ("wide", "square", "tile"):
        pool = Pool(name, count, artist.encoder, source)
        losses = [tile_loss(artist.model, pool, min(count, 64), blank) if pool.tile else
                  view_loss(artist.model, artist.model, pool, min(count, 64), blank, False)
                  for _ in range(max(1, count // 8))]
        facts[name] = round(float(torch.stack(losses).mean()), 4)
    return facts


def mean(values) -> float:
    values = list(values)
    return round(sum(values) / max(1, len(values)), 3)


def followed(a: argparse.Namespace, artist: Artist, judge: Judge, each: int) -> tuple[dict, Tensor]:
    """How often the judge finds the place and the time that a plain caption asked for, the light
    of the sky by time, and the shares of colours by place, by day."""
    places = painter.PLACES[:2] if a.dry else painter.PLACES
    asked = [(p, t) for p in places for t in painter.TIMES for _ in range(each)]
    rng = random.Random(5)
    texts = [f"{rng.choice(captions.WORDS[p])} {rng.choice(captions.WORDS[t])}" for p, t in asked]
    made = artist.drafts(texts, [1000 + i for i in range(len(texts))])
    facts = {}
    for column, kind in enumerate(("place", "time")):
        hits = defaultdict(list)
        for name, want in zip(judge.names(kind, made), asked):
            hits[want[column]].append(name == want[column])
        facts[kind] = {k: round(sum(v) / len(v), 3) for k, v in hits.items()}
    light = sky_light(made).tolist()
    facts["sky_light"] = {t: mean(v for v, (_, u) in zip(light, asked) if u == t)
                          for t in painter.TIMES}
    for name in ("sand", "water", "snow"):
        values = SHARES[name](made).tolist()
        facts[name] = {p: mean(v for v, (q, t) in zip(values, asked) if q == p and t == "day")
                       for p in places}
    return facts, made[::each]


def one_word_changed(artist: Artist, judge: Judge, seeds: int) -> tuple[dict, dict[str, Tensor]]:
    """The same seeds with one word changed: what the judge says and what the pixels say."""
    swaps = {
        "sunset_to_night": ("time", "sunset", "night", "sky_light", "{other} at {word}",
                            [captions.WORDS[p][0] for p in painter.PLACES]),
        "lake_to_desert": ("place", "lake", "desert", "sand", "a {word} {other}",
                           ["at dawn", "by day", "in the early morning", "in daylight"]),
        "desert_to_lake": ("place", "desert", "lake", "water", "a {word} by day{other}",
                           ["", ", a clear sky", ", a few clouds"]),
        "forest_to_winter": (None, "green forest", "snowy winter forest", "snow",
                             "a {word} by day{other}", ["", ", a clear sky", ", some clouds"])}
    facts, sheets = {}, {}
    for name, (kind, first, second, share, pattern, others) in swaps.items():
        texts = [pattern.format(word=word, other=others[i % len(others)])
                 for word in (first, second) for i in range(seeds)]
        pair = artist.drafts(texts, [*range(seeds)] * 2)
        before, after = SHARES[share](pair).split(seeds)
        moved = after < .6 * before if share == "sky_light" else after > before + .15
        facts[name] = {f"{share}_changed": f"{int(moved.sum())} of {seeds}",
                       f"{share}_before": round(float(before.mean()), 3),
                       f"{share}_after": round(float(after.mean()), 3)}
        if kind:
            said = judge.names(kind, pair)
            both = sum(said[i] == first and said[i + seeds] == second for i in range(seeds))
            facts[name]["both_named"] = f"{both} of {seeds}"
        sheets[name] = pair
    return facts, sheets


def edge_energy(pictures: Tensor) -> float:
    return float(pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean())


@torch.no_grad()
def tiles(a: argparse.Namespace, artist: Artist, count: int) -> tuple[dict, list[Tensor]]:
    """A refined tile equals its source when both are small, and holds the detail of the truth."""
    drawer = Drawer(987655)
    drawer.zoom = lambda: 15.0
    drawn = {k: sent(v) for k, v in draw_batch(drawer, artist.words, "tile", count).items()}
    packed = painter.Packed(drawn["rows"], drawn["seeds"])
    torch.manual_seed(2)
    true, soft = paint_tiles(packed, drawn["places"], artist.encoder)
    source = artist.encoder("decode", soft).clamp(-1, 1)
    shown = min(count, 8)
    strips, facts = [*source[:shown], *true[:shown]], {}
    texts = ["a landscape"] * count
    for sigma, steps in ((.42, 2),) if a.dry else ((.36, 4), (.42, 5), (.42, 8), (.48, 6)):
        sharp = artist.refine(soft, texts, sigma, steps)
        small = [F.interpolate(x, scale_factor=1 / 16, mode="area") for x in (sharp, source, true)]
        facts[f"sigma {sigma}, {steps} steps"] = dict(
            psnr_to_source_16x_smaller=round(psnr(small[0], small[1]), 2),
            truth_to_source_16x_smaller=round(psnr(small[2], small[1]), 2),
            edges_of_truth=round(edge_energy(sharp) / edge_energy(true), 3),
            edges_of_source=round(edge_energy(sharp) / edge_energy(source), 3))
        strips += [*sharp[:shown]]
    return facts, strips


def posters(artist: Artist) -> tuple[Tensor, list[Tensor]]:
    """Three drafts, and of each four places as enlarged and as refined."""
    texts = ["a mountain lake at sunset, scattered clouds, warm colours, framed by pines",
             "sea cliffs at night, the moon on the left, a clear sky",
             "a forest of firs at dawn, fog in the valleys"]
    drafts = artist.drafts(texts, [7, 8, 9])
    shots, span = [], torch.tensor([512 / 15], device=DEVICE)
    for draft, text in zip(drafts, texts):
        for left, top in ((100, 130), (230, 160), (340, 200), (170, 240)):
            at = [torch.tensor([float(v)], device=DEVICE) for v in (left, top)]
            large = enlarged(draft[None], *at, span, 512)
            shots += [large[0], artist.refine(artist.encoder("encode", large), [text], .42, 5)[0]]
    return drafts, shots


@torch.no_grad()
def evaluate(a: argparse.Namespace) -> None:
    """All tests; `--share` scales the numbers of pictures: a CPU wants less than 1."""
    def number(full: int, least: int = 8) -> int:
        return 4 if a.dry else max(least, int(full * a.share))

    vae, _ = load_vae(a.work, a.model)
    words = Words(a.model)
    model = load_exported(a.model, words)
    artist = Artist(model.eval(), Encoder(vae, compiled=False, part=16), words, 2 if a.dry else 20)
    result: dict = {"vae": check_vae(vae, number(32), a.work / "vae")}
    result["loss"] = held_out(a, artist, number(192))
    log("held out", json.dumps(result))

    judge = Judge(number(2048, 64))
    themes, real = judge.painted(Drawer(31337), number(512, 32))
    result["judge_on_painted"] = {
        kind: round(sum(x == getattr(t, kind) for x, t in zip(judge.names(kind, real), themes))
                    / len(themes), 3) for kind in ("place", "time")}
    result["painted"] = {
        name: {p: round(float(SHARES[name](torch.stack(
            [x for x, t in zip(real, themes) if t.place == p and t.time == "day"]
            or [real[0]])).mean()), 3)
            for p in painter.PLACES} for name in ("sand", "water", "snow")}
    light = sky_light(real).tolist()
    result["painted"]["sky_light"] = {t: mean(v for v, u in zip(light, themes) if u.time == t)
                                      for t in painter.TIMES}
    result["followed"], made = followed(a, artist, judge, max(1, int(5 * a.share)))
    save_grid([*made], 5, a.work / "drafts.jpg")
    result["words"], sheets = one_word_changed(artist, judge, number(10, 2))
    for name, pair in sheets.items():
        save_grid([*pair], len(pair) // 2, a.work / f"{name}.jpg")
    log("words", json.dumps(result["words"]))
    result["tiles"], strips = tiles(a, artist, number(48, 4))
    save_grid(strips, min(8, number(48, 4)), a.work / "tiles.jpg")
    if not a.dry:
        drafts, shots = posters(artist)
        save_grid([*drafts], 3, a.work / "posters.jpg")
        save_grid(shots, 8, a.work / "crops.jpg")
    captions.write_json(a.work / "evaluation.json", result)
    print(json.dumps(result, indent=1))
    log("evaluated")
