/*
 * landscape.cu - the colour of a scene at any point of the plane; CUDA C++ and C++ alike.
 *
 * Owns the arithmetic of painter.py's pictures: noise, silhouettes, light, trees, water, sky.  The
 * scenes' numbers arrive as rows of floats whose places the enumerations in front of this file name
 * (painter.py writes them).  Knows nothing of themes, captions or files.
 *
 * Coordinates: the picture's height is 1, y points up, x = 0 is the middle; px is the size of a
 * pixel.  Octaves of noise fade out where they would fall under the pixel grid, and what is left
 * of a sum is replaced by its mean, so that a crop at 15x is the same picture with more in it.
 * Colours are display values: this is paint, not optics.  Layers are looked at from the nearest to
 * the farthest, and only what is seen is shaded.
 */
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define FN __host__ __device__ static inline
#else
#define FN static inline
#endif

/* ---------------------------------------------------------------------------- small helpers */

struct rgb { float r, g, b; };

FN rgb colour(const float *c) { return {c[0], c[1], c[2]}; }
FN rgb operator+(rgb a, rgb b) { return {a.r + b.r, a.g + b.g, a.b + b.b}; }
FN rgb operator*(rgb a, rgb b) { return {a.r * b.r, a.g * b.g, a.b * b.b}; }
FN rgb operator*(rgb a, float k) { return {a.r * k, a.g * k, a.b * k}; }
FN rgb grey(float v) { return {v, v, v}; }
FN rgb mix(rgb a, rgb b, float t) { return a + (b + a * -1.0f) * t; }
FN float mix(float a, float b, float t) { return a + (b - a) * t; }
FN float clamp(float x, float a = 0.0f, float b = 1.0f) { return fminf(fmaxf(x, a), b); }
FN float luma(rgb c) { return .30f * c.r + .59f * c.g + .11f * c.b; }

FN float smooth(float a, float b, float x)
{
    float t = clamp((x - a) / (b - a));
    return t * t * (3.0f - 2.0f * t);
}

/* -------------------------------------------------------------------------------------- noise */

FN uint32_t hash(int x, int y, int seed)
{
    uint32_t h = (uint32_t)x * 374761393u + (uint32_t)y * 668265263u + (uint32_t)seed * 2246822519u;
    h = (h ^ (h >> 13)) * 1274126177u;
    h = (h ^ (h >> 16)) * 2654435761u;
    return h ^ (h >> 15);
}

/* Uniform in [0, 1). */
FN float chance_of(int x, int y, int seed) { return (float)(hash(x, y, seed) >> 8) / 16777216.0f; }

FN float corner(int ix, int iy, int seed, float fx, float fy)
{
    uint32_t h = hash(ix, iy, seed);
    float    gx = (float)(h & 0xFFFF) * (1 / 32768.0f) - 1.0f;
    float    gy = (float)(h >> 16) * (1 / 32768.0f) - 1.0f;
    return gx * fx + gy * fy;
}

/* Gradient noise, mean 0, mostly within [-1, 1]. */
FN float noise(float x, float y, int seed)
{
    float lx = floorf(x), ly = floorf(y), fx = x - lx, fy = y - ly;
    int   ix = (int)lx, iy = (int)ly;
    float ux = fx * fx * fx * (fx * (fx * 6.0f - 15.0f) + 10.0f);
    float uy = fy * fy * fy * (fy * (fy * 6.0f - 15.0f) + 10.0f);
    float low = mix(corner(ix, iy, seed, fx, fy), corner(ix + 1, iy, seed, fx - 1, fy), ux);
    float high = mix(corner(ix, iy + 1, seed, fx, fy - 1),
                     corner(ix + 1, iy + 1, seed, fx - 1, fy - 1), ux);
    return 1.7f * mix(low, high, uy);
}

/* Weight of an octave whose wave spans 1 / foot pixels: 1 above five pixels, 0 below two. */
FN float band(float foot) { return clamp((0.5f - foot) * (1.0f / 0.3f)); }

FN void next_octave(float &x, float &y, float &foot, int &seed)
{
    float turned = 1.6f * x - 1.2f * y + 5.3f;
    y = 1.2f * x + 1.6f * y - 2.9f;
    x = turned;
    foot *= 2.0f;
    seed += 31;
}

/* Sum of noise octaves; foot is the size of a pixel in units of x and y. */
FN float fbm(float x, float y, float foot, int seed, float gain, int octaves)
{
    float total = 0.0f, weight = .6f;
    for (int i = 0; i < octaves && foot < .5f; i++) {
        total += weight * band(foot) * noise(x, y, seed);
        weight *= gain;
        next_octave(x, y, foot, seed);
    }
    return total;
}

/* Terrain in about [0, 1]: sharp 1 makes ridges (mountains, crests), 0 rolling ground.  Ridges
 * carry more detail than valleys: every octave is weighted by the one before. */
FN float relief(float x, float y, float foot, int seed, float sharp, float gain, int octaves)
{
    float total = 0.0f, carry = 1.0f, weight = .6f;
    for (int i = 0; i < octaves; i++) {
        float value = .4f, seen = band(foot);
        if (seen > 0.0f) {
            float n = noise(x, y, seed), ridge = 1.0f - sqrtf(n * n + 6e-4f);
            value += seen * (sharp * ridge * ridge + (1.0f - sharp) * (.5f + .55f * n) - .4f);
        }
        total += weight * carry * value;
        carry = clamp(.25f + 1.1f * value);
        weight *= gain;
        next_octave(x, y, foot, seed);
    }
    return total;
}

/* ---------------------------------------------------------------------------------- the scene */

struct view {
    const float *s;      /* [SCENE_SIZE] the scene, layers behind one another from LAYER_AT on */
    const float *crests; /* [LAYERS] height of each silhouette in this column                   */
    int          seed;
    float        x, px;
};

FN const float *layer_of(const view &v, int k) { return v.s + LAYER_AT + k * LAYER_SIZE; }
FN int layer_seed(const view &v, int k) { return v.seed + 7919 * (k + 1); }

/* 1 where a layer is, 0 where it has ended. */
FN float inside_of(const float *l, float x)
{
    return smooth(0.0f, 1.0f, (x - l[LEFT]) / l[SOFT] + .5f) *
           smooth(0.0f, 1.0f, (l[RIGHT] - x) / l[SOFT] + .5f) *
           smooth(-.05f, .05f, fabsf(x) - l[VOID]);
}

/* Height of a layer's silhouette at x.  Where it ends, it either falls off at once or, with
 * TAPER, runs down to the water like a headland. */
FN float crest(const float *s, const float *l, int seed, float x, float px, int octaves)
{
    float rise = relief(x * l[FREQ], 0.0f, px * l[FREQ], seed, l[SHARP], l[GAIN], octaves);
    float inside = inside_of(l, x);
    float top = l[BASE] + l[AMP] * 1.6f * (rise - .35f);

    if (octaves > 5) top += fbm(x * 90.0f, 0.0f, px * 90.0f, seed + 3, .7f, 6) * l[ROUGH] * .0022f;
    if (l[TAPER] > 0.0f) {
        float foot = s[WATER] - .05f;
        return foot + (top - foot) * powf(inside, l[TAPER]) - .12f * (1.0f - inside);
    }
    return top - .5f * (1.0f - inside);
}

/* Colour of the air between the layers, brighter under the light. */
FN rgb air(const view &v)
{
    float near = expf(-2.2f * fabsf(v.x - v.s[LIGHT_X])) * v.s[GLOW];
    return mix(colour(v.s + HORIZON), colour(v.s + MIDDLE), .35f) +
           colour(v.s + LIGHT) * (.16f * near);
}

FN float sun_side(const view &v, float k) { return tanhf(k * (v.s[LIGHT_X] - v.x)); }

/* -------------------------------------------------------------------------------------- ground */

/* Flowers in drifts over the near ground, smaller towards its crest. */
FN rgb flowers(const view &v, float bloom, float depth, float patch, rgb shade, float lit)
{
    const float size = .020f;
    float gy = log2f(depth + .06f) * 9.0f, row = floorf(gy);
    int   iy = (int)row;
    float gx = v.x / size + 9.0f * chance_of(iy, iy, v.seed + 10), cell = floorf(gx);
    int   ix = (int)cell;
    float pick = chance_of(ix, iy, v.seed + 11);

    if (pick >= .8f * bloom * smooth(-.25f, .35f, patch)) return shade;
    float dx = (gx - cell - .3f - .4f * chance_of(ix, iy, v.seed + 12)) * size;
    float dy = (gy - row - .3f - .4f * chance_of(ix, iy, v.seed + 13)) * (depth + .06f) * .077f;
    float radius = (.0030f + .012f * depth) *
                   (1.0f + .22f * cosf(5.0f * atan2f(dy, dx + 1e-9f) + 6.3f * pick));
    float away = sqrtf(dx * dx + 2.0f * dy * dy + 1e-12f);
    float hue = chance_of(ix, iy, v.seed + 14), kind = (float)(v.seed & 1);
    rgb   petal = {.95f - .25f * kind * hue, .80f - .55f * hue, .30f + .55f * kind + .05f * hue};
    float heart = clamp((.3f * radius - away) / v.px + .5f);

    petal = petal * (1.0f - .45f * heart) *
            (colour(v.s + AMBIENT) * .8f + colour(v.s + LIGHT) * (.7f * lit));
    return mix(shade, petal, .9f * clamp((radius - away) / v.px + .5f));
}

/* The ground of layer k at height y, seen through the air before it. */
FN rgb ground(const view &v, int k, float y)
{
    const float *l = layer_of(v, k), *s = v.s;
    int          seed = layer_seed(v, k);
    float        depth = fmaxf(v.crests[k] - y, 0.0f), freq = l[FREQ], foot = v.px * freq;
    float        u = v.x * freq, w = depth * freq * l[SKEW], gain = .92f * l[GAIN];
    float        step = fmaxf(.8f * foot, 2e-3f);
    float        here = relief(u, w, foot, seed, l[SHARP], gain, OCTAVES);
    float        across = relief(u + step, w, foot, seed, l[SHARP], gain, OCTAVES) - here;
    float        down = relief(u, w + step, foot, seed, l[SHARP], gain, OCTAVES) - here;
    float        slope = (-1.1f * across * sun_side(v, 2.5f) - .45f * down) / step;
    float        light = tanhf(slope);
    float        grain = .7f * fbm(u * 15.0f, w * 9.0f, foot * 15.0f, seed + 501, .76f, 8);
    float        patch = fbm(u * 1.7f + 3.0f, w * 2.6f, foot * 2.6f, seed + 777, .5f, 9);
    float        fine = l[ROUGH] * grain;

    float beds = 0.0f;
    if (l[STRATA] > 0.0f)
        beds = 1.7f * l[STRATA] *
               fbm(depth * 26.0f + .8f * patch, v.x * .7f + 9.0f, v.px * 26.0f, seed + 61, .6f, 3);
    rgb albedo = mix(colour(l + LOW), colour(l + HIGH), clamp(.5f + .55f * patch + .25f * fine));
    albedo = albedo * fmaxf(1.0f + .22f * beds + .22f * fine, .2f);
    if (l[TURF] > 0.0f) {
        float top = l[TURF] * (1.0f + 1.5f * patch + .8f * grain) - depth;
        rgb   grass = colour(s + GRASS) * (.62f + .3f * patch + .25f * grain);
        albedo = mix(albedo, grass,
                     smooth(-.004f, .012f, top) * smooth(.70f, .98f, inside_of(l, v.x)));
    }
    float altitude = (y - l[BASE]) / fmaxf(l[AMP], .01f);
    float snow = smooth(-.10f, .10f, altitude + .35f * patch + .18f * grain - 1.0f +
                                         1.1f * l[SNOW]);
    snow *= smooth(0.0f, .05f, l[SNOW]) * smooth(-1.0f, -.2f, light + .5f * l[SNOW]);
    albedo = mix(albedo, {.95f, .97f, 1.0f}, snow);
    float lit = .5f + .5f * clamp(light * l[RELIEF] + .12f * fine, -1.0f, 1.0f);
    if (l[RIPPLE] > 0.0f) {
        float along = 400.0f * depth + 90.0f * v.x + 9.0f * patch;
        lit += l[RIPPLE] * .10f * band(v.px * 150.0f) * sinf(along + 1.5f * grain);
        lit += l[RIPPLE] * .05f * band(v.px * 800.0f) *
               sinf(4.7f * along - 260.0f * v.x + 6.0f * grain);
        lit += .10f * fbm(v.x * 700.0f, depth * 900.0f, v.px * 900.0f, seed + 83, .7f, 3);
    } else if (l[STRATA] <= 0.0f && l[SHARP] <= 0.0f) {
        float blades = fbm(v.x * 420.0f, depth * 140.0f, v.px * 420.0f, seed + 71, .8f, 4);
        albedo = albedo * (1.0f + .34f * blades);
        lit += .16f * blades;
    }
    lit = clamp(lit);
    /* What the light reaches sees less of the sky: sand and grass keep their colour by day. */
    rgb shade = albedo * (colour(s + AMBIENT) * (.82f - .36f * lit) +
                          colour(s + LIGHT) * (.84f * lit));
    if (l[BLOOM] > 0.0f) shade = flowers(v, l[BLOOM], depth, patch, shade, lit);
    float veil = l[HAZE] + (1.0f - l[HAZE]) * l[MIST] * smooth(0.0f, 1.0f, depth / l[DEPTH]);
    return mix(shade, air(v), veil);
}

/* --------------------------------------------------------------------------------------- trees */

/* How far inside a tree a point lies, in tree heights (negative: outside), and its tone.  t: 0 at
 * the top, 1 at the foot; dx from the stem. */
FN float fir(float t, float dx, float twigs, float odd, float &tone)
{
    float tier = t * (9.0f + 4.0f * odd) - 7.0f * fabsf(dx) + odd + .35f * twigs;
    float drop = tier - floorf(tier);
    float width = .19f * powf(clamp(t), .85f) * (.60f + .40f * drop + .42f * twigs);
    float stem = .004f + .010f * clamp(t);

    width = t > .95f ? stem : fmaxf(width, stem);
    tone = .30f - .42f * drop + .75f * twigs;
    return fminf(fminf(width - fabsf(dx), t), 1.06f - t);
}

FN float lobe(float t, float dx, float at_t, float at_x, float size)
{
    float a = dx - at_x, b = t - at_t;
    return size - sqrtf(a * a + b * b + 1e-8f);
}

FN float oak(float t, float dx, float twigs, float odd, float &tone)
{
    float ball = lobe(t, dx, .40f, 0.0f, .33f);
    ball = fmaxf(ball, lobe(t, dx, .52f - .1f * odd, -.24f, .20f + .06f * odd));
    ball = fmaxf(ball, lobe(t, dx, .44f + .1f * odd, .24f, .25f - .06f * odd));
    ball = fmaxf(ball, lobe(t, dx, .26f, .16f - .3f * odd, .20f)) + .09f * twigs;
    float stem = fminf(fminf(.030f + .02f * smooth(.9f, 1.0f, t) - fabsf(dx), t - .4f), 1.04f - t);
    tone = ball > stem ? .40f - .85f * t + .75f * twigs : -.45f;
    return fmaxf(ball, stem);
}

/* Trees of layer k that stand along its crest, in ROWS rows down the slope; returns how much of
 * the point they cover and lays their colour in out. */
FN float trees(const view &v, int k, float y, rgb &out)
{
    const float *l = layer_of(v, k), *s = v.s;
    int          rows = (int)l[ROWS];
    float        reach = l[TREES] * (1.0f + .25f * (float)rows);
    float        over = v.crests[k] - y;

    if (rows == 0 || over < -reach - .01f || over > (float)rows * l[ROW_DROP] + .04f) return 0.0f;
    float scale = 11.0f / l[TREES];
    float twigs = fbm(v.x * scale, y * scale, v.px * scale, layer_seed(v, k) + 5, .7f, 7);
    float cover = 0.0f, tone = 0.0f, nearest = 0.0f;
    for (int row = rows - 1; row >= 0 && cover < 1.0f; row--) {
        int   seed = layer_seed(v, k) + 104729 + 977 * row;
        float gap = l[GAP] * (1.0f + .18f * (float)row);
        float tall = l[TREES] * (1.0f + .2f * (float)row);
        float place = v.x / gap + .37f * (float)row, cell = floorf(place);
        float row_cover = 0.0f, row_tone = 0.0f;
        for (int j = -1; j <= 1; j++) {
            int   i = (int)cell + j;
            float odd = chance_of(i, i, seed + 3);
            float middle = ((float)i + .5f + .8f * (chance_of(i, i, seed + 1) - .5f) -
                            .37f * (float)row) * gap;
            float crowd = noise(middle * 2.3f + 11.0f, (float)row, seed + 9);
            if (odd > l[DENSE] + l[CLUMP] * crowd) continue;
            float size = tall * (.55f + .45f * chance_of(i, i, seed + 2));
            float dx = (v.x - middle) / size;
            if (fabsf(dx) > .62f) continue;
            float foot = crest(s, l, layer_seed(v, k), middle, .004f, 5) - .03f * size -
                         (float)row * l[ROW_DROP] * (.7f + .6f * odd);
            float t = (foot + size - y) / size, own;
            if (t < -.1f || t > 1.15f) continue;
            float in = l[CROWN] > .5f ? oak(t, dx, twigs, odd, own) : fir(t, dx, twigs, odd, own);
            float part = clamp(in * size / v.px + .5f);
            if (part <= row_cover) continue;
            row_cover = part;
            row_tone = own + .35f * (odd - .5f) + 1.1f * dx * sun_side(v, 9.0f);
            nearest = (float)(row + 1) / (float)rows;
        }
        tone += (1.0f - cover) * row_cover * row_tone;
        cover += (1.0f - cover) * row_cover;
    }
    if (cover <= 0.0f) return 0.0f;
    tone /= cover;
    rgb   wood = mix(colour(l + LOW), colour(l + HIGH), clamp(.5f + .9f * tone));
    float frost = s[WINTER] * smooth(.0f, .45f, tone + .15f);
    wood = mix(wood, {.84f, .89f, .97f}, .8f * frost);
    wood = wood * (colour(s + AMBIENT) * .9f +
                   colour(s + LIGHT) * (.6f * clamp(.6f + tone, 0.0f, 1.3f)));
    out = mix(wood, air(v), l[HAZE] * (1.0f - .12f * nearest));
    return cover;
}

/* ------------------------------------------------------------------------------- sky and water */

/* Stars: one at most in each cell of two lattices. */
FN float stars(const view &v, float y)
{
    float total = 0.0f;
    for (int i = 0; i < 2; i++) {
        float cells = i ? 38.0f : 16.0f, share = i ? .30f : .45f;
        int   seed = v.seed + (i ? 50 : 40);
        float gx = v.x * cells, gy = y * cells, cx = floorf(gx), cy = floorf(gy);
        int   ix = (int)cx, iy = (int)cy;
        if (chance_of(ix, iy, seed + 3) >= share) continue;
        float dx = (gx - cx - .2f - .6f * chance_of(ix, iy, seed)) / cells;
        float dy = (gy - cy - .2f - .6f * chance_of(ix, iy, seed + 1)) / cells;
        float big = chance_of(ix, iy, seed + 2);
        float size = .0011f + .0014f * big * big * big, seen = fmaxf(size, .75f * v.px);
        total += expf(-(dx * dx + dy * dy) / (seen * seen)) * powf(size / seen, 1.5f);
    }
    return total;
}

/* Clouds: a flat deck seen in perspective, lit from the light's side. */
FN rgb clouds(const view &v, float y, float away, rgb behind, float rise)
{
    const float *s = v.s;
    float near = 1.0f / (fmaxf(y - s[LEVEL], 0.0f) + .16f);
    float u = v.x * near * .75f, w = near * .95f, foot = v.px * near * fmaxf(near * .95f, .75f);
    float thick = fbm(u, w, foot, v.seed + 901, .52f, 10), cover;

    cover = smooth(.42f - .80f * s[COVER], .78f - .70f * s[COVER], thick + .20f);
    if (cover <= 0.0f) return behind;
    float thin = fbm(u + .16f * sun_side(v, 3.0f), w - .12f, foot, v.seed + 901, .52f, 10);
    float lit = clamp(.58f + 1.5f * (thick - thin) - .22f * cover * s[COVER]);
    rgb   tint = mix(colour(s + SHADE), colour(s + CLOUD), lit);
    tint = tint + colour(s + LIGHT) * (.30f * s[GLOW] * expf(-3.0f * away) * lit);
    return mix(behind, tint, .94f * cover * smooth(0.0f, .12f, rise));
}

FN rgb sky(const view &v, float y, bool mirrored)
{
    const float *s = v.s;
    float rise = fmaxf((y - s[LEVEL]) / (1.0f - s[LEVEL]), 0.0f);
    rgb   c = mix(colour(s + HORIZON), colour(s + MIDDLE), smooth(0.0f, .45f, rise));
    c = mix(c, colour(s + ZENITH), smooth(.2f, 1.05f, rise));
    float dx = v.x - s[LIGHT_X], dy = y - s[LIGHT_Y], away = sqrtf(dx * dx + dy * dy + 1e-9f);
    float halo = .42f * expf(-3.2f * away) + .30f * expf(-40.0f * away * away);
    c = c + colour(s + LIGHT) * (s[GLOW] * halo);
    if (s[NIGHT] > 0.0f && !mirrored) c = c + grey(stars(v, y) * smooth(.05f, .4f, rise));
    float disc = clamp((s[DISC] - away) / fmaxf(v.px, .0015f) + .5f);
    if (disc > 0.0f) {
        rgb face = colour(s + LIGHT) * .4f + grey(.9f);
        face = {fmaxf(face.r, c.r + .3f), fmaxf(face.g, c.g + .3f), fmaxf(face.b, c.b + .3f)};
        if (s[NIGHT] > 0.0f) {
            float spots = fbm(dx * 30.0f, dy * 30.0f, v.px * 30.0f, v.seed + 5, .55f, 7);
            float lune = smooth(-.9f, .35f, (dx * s[PHASE] + dy * .5f) / s[DISC]);
            face = rgb{1.0f, .98f, .90f} * ((.80f + .16f * spots) * (.2f + .8f * lune));
        }
        c = mix(c, face, disc);
    }
    return clouds(v, y, away, c, rise);
}

/* Swell of a water plane seen in perspective; calm towards the horizon. */
FN float waves(const view &v, float below)
{
    float near = 1.0f / (below + .05f);
    return fbm(v.x * near * 1.1f, near * 1.6f, v.px * near * near * 1.6f, v.seed + 4001, .62f, 9);
}

/* What is mirrored becomes water: depth, whitecaps, surf at the shore, the path of the light. */
FN rgb water(const view &v, float below, float swell, float shore, rgb mirrored)
{
    const float *s = v.s;
    rgb   deep = rgb{.03f, .26f, .36f} * s[DAY] +
               (colour(s + ZENITH) * .5f + colour(s + MIDDLE) * .12f) * (1.0f - s[DAY]);
    float own = .12f + .55f * smooth(0.0f, .5f, below) + .16f * s[WAVE];
    rgb   c = mix(mirrored, deep, own) * (1.0f + .30f * s[WAVE] * swell);
    float off = (v.x - s[LIGHT_X]) / (.05f + .35f * below);
    float path = expf(-off * off) * smooth(-.05f, .45f, swell + .1f);
    c = c + colour(s + LIGHT) * (.75f * s[GLOW] * path);
    float foam = smooth(.42f, .62f, swell) * s[WAVE] * smooth(.01f, .08f, below);
    float surf = shore * smooth(.011f + .009f * swell, .001f, below) * s[WAVE];
    return mix(c, colour(s + CLOUD), fmaxf(.55f * foam, .8f * surf));
}

/* ------------------------------------------------------------------------------------- a point */

/* Layers [from, to) seen at height y before what lies behind; nearest first. */
struct seen { rgb sum; float left; };

FN void look(const view &v, int from, int to, float y, seen &out)
{
    for (int k = to - 1; k >= from && out.left > .003f; k--) {
        float part = clamp((v.crests[k] - y) / v.px + .5f);
        rgb   wood;
        float cover = trees(v, k, y, wood);
        /* Trees of the front rows stand before their own ground, the crest's row behind it. */
        if (cover > 0.0f) {
            out.sum = out.sum + wood * (out.left * cover);
            out.left *= 1.0f - cover;
        }
        if (part > 0.0f && out.left > .003f) {
            out.sum = out.sum + ground(v, k, y) * (out.left * part);
            out.left *= 1.0f - part;
        }
    }
}

/* Give the picture its palette and keep it in [0, 1] with a soft shoulder. */
FN rgb grade(rgb c, int palette)
{
    if (palette == 1) c = c * rgb{1.10f, .97f, .76f};
    if (palette == 2) c = c * rgb{.80f, .98f, 1.16f};
    if (palette == 3) c = rgb{.25f, .22f, .28f} + mix(grey(luma(c)), c, .72f) * .74f;
    if (palette == 4) c = mix(grey(luma(c)), c, 1.40f);
    float *part[3] = {&c.r, &c.g, &c.b};
    for (int i = 0; i < 3; i++) {
        float x = fmaxf(*part[i], 0.0f);
        *part[i] = x < .8f ? x : 1.0f - .2f * expf(-(x - .8f) / .2f);
    }
    return c;
}

FN rgb point(const view &v, float y)
{
    const float *s = v.s;
    seen         out = {{0, 0, 0}, 1.0f};
    float        below = fmaxf(s[WATER] - y, 0.0f), wet = clamp((s[WATER] - y) / v.px + .5f);

    look(v, FRONT, LAYERS, y, out);
    if (out.left > .003f) {
        seen  far = {{0, 0, 0}, 1.0f};
        float swell = wet > 0.0f ? waves(v, below) : 0.0f, far_y = y, shore = 0.0f;
        if (y < s[WATER]) far_y = s[WATER] + below + s[WAVE] * swell * (.004f + .16f * below);
        look(v, 0, FRONT, far_y, far);
        if (far.left > .003f) far.sum = far.sum + sky(v, far_y, wet > .5f) * far.left;
        for (int k = 0; wet > 0.0f && k < FRONT; k++)
            shore = fmaxf(shore, smooth(.0f, .02f, v.crests[k] - s[WATER]) * (1.0f -
                          layer_of(v, k)[HAZE]));
        if (wet > 0.0f) far.sum = mix(far.sum, water(v, below, swell, shore, far.sum), wet);
        out.sum = out.sum + far.sum * out.left;
    }
    return grade(out.sum, (int)s[GRADE]);
}

/* ------------------------------------------------------------------------------------ pictures */

/* Pictures are [count, 3, height, width] bytes; windows [count, 3]: left, top, size of a pixel.
 * Two points are averaged for each pixel; crests [count, 2 * width, LAYERS] is working space. */
struct request {
    const float *scenes, *windows;
    const int   *seeds;
    float       *crests;
    uint8_t     *out;
    int          count, height, width;
};

FN void fill_column(const request &r, int i, int column)
{
    const float *s = r.scenes + (int64_t)i * SCENE_SIZE, *window = r.windows + 3 * i;
    float        x = window[0] + window[2] * ((float)column * .5f + .25f);
    float       *crests = r.crests + ((int64_t)i * 2 * r.width + column) * LAYERS;

    for (int k = 0; k < LAYERS; k++) {
        const float *l = s + LAYER_AT + k * LAYER_SIZE;
        crests[k] = l[BASE] < -5.0f ? -9.0f : crest(s, l, r.seeds[i] + 7919 * (k + 1), x, window[2],
                                                    OCTAVES);
    }
}

FN void fill_pixel(const request &r, const float *scene, int i, int row, int column)
{
    const float *window = r.windows + 3 * i;
    rgb          sum = {0, 0, 0};

    for (int a = 0; a < 2; a++) {
        view v = {scene, r.crests + ((int64_t)i * 2 * r.width + 2 * column + a) * LAYERS,
                  r.seeds[i],
                  window[0] + window[2] * ((float)column + .25f + .5f * (float)a), window[2] * .8f};
        sum = sum + point(v, window[1] - window[2] * ((float)row + (a ? .75f : .25f)));
    }
    int64_t  plane = (int64_t)r.height * r.width;
    uint8_t *out = r.out + 3 * plane * i + (int64_t)row * r.width + column;
    out[0] = (uint8_t)(127.5f * sum.r + .5f);
    out[plane] = (uint8_t)(127.5f * sum.g + .5f);
    out[2 * plane] = (uint8_t)(127.5f * sum.b + .5f);
}

#ifdef __CUDACC__
__global__ void columns(request r)
{
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column < 2 * r.width) fill_column(r, blockIdx.y, column);
}

__global__ void pixels(request r)
{
    __shared__ float scene[SCENE_SIZE];
    int              at = threadIdx.y * blockDim.x + threadIdx.x, i = blockIdx.z;
    for (int j = at; j < SCENE_SIZE; j += blockDim.x * blockDim.y)
        scene[j] = r.scenes[(int64_t)i * SCENE_SIZE + j];
    __syncthreads();
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column < r.width && row < r.height) fill_pixel(r, scene, i, row, column);
}

/* Launches on the given stream and returns the launches' error code. */
extern "C" int paint(request r, void *stream)
{
    dim3 columns_grid((2 * r.width + 63) / 64, r.count), block(16, 8);
    dim3 grid((r.width + 15) / 16, (r.height + 7) / 8, r.count);
    columns<<<columns_grid, 64, 0, (cudaStream_t)stream>>>(r);
    pixels<<<grid, block, 0, (cudaStream_t)stream>>>(r);
    return (int)cudaGetLastError();
}
#else
extern "C" int paint(request r, void *)
{
    for (int i = 0; i < r.count; i++) {
        for (int column = 0; column < 2 * r.width; column++) fill_column(r, i, column);
#pragma omp parallel for schedule(dynamic, 4)
        for (int row = 0; row < r.height; row++)
            for (int column = 0; column < r.width; column++)
                fill_pixel(r, r.scenes + (int64_t)i * SCENE_SIZE, i, row, column);
    }
    return 0;
}
#endif
