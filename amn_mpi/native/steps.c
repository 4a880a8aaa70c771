/* Forward, backward and SGD of small networks on one core.
 *
 * A network is [convolution + relu + 2x2 max-pooling]*, [linear + relu]*, linear, cross-entropy, with
 * or without batch normalisation before a relu. This file is compiled once for every instruction set,
 * with ISA and LANES (floats in a vector) given.
 *
 * Parameters and gradients are flat vectors in torch's own layout. Inside, images are
 * channels-last, (height, width, channels) without padding, so that what a row of a kernel reads
 * is one run of kw x channels floats; every buffer ends in slack, because whole vectors are
 * read and written at a run's end.
 *
 * Most of a convolution's backward is zeros: max-pooling passes a gradient to one of four
 * positions, relu to none of them where the unit is dead. So the forward is a dense product, and
 * both backward products run over lists of what is not zero. Where z is normalised the lists have every
 * position: by a batch's own statistics each has a gradient.
 *
 * The order of every sum is given by shapes and data alone, never by addresses, so results are the
 * same bit for bit wherever the buffers lie.
 *
 * With AVX512-BF16 (BF16 below) this is the arithmetic of mixed precision: every layer's inputs and
 * weights are rounded to bf16, the nearest, ties to even, and multiplied in pairs with float32 sums.
 * The backward takes the same rounded inputs and weights, so its gradient is that of the network that
 * the forward computed; a linear layer rounds its output's gradient, too, before its two products,
 * and a convolution's two are in float32. Biases and their gradients, scores, losses, all sums and
 * the weights that a step changes are float32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define JOIN2(a, b) amn_##a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define EXPORT __attribute__((visibility("default")))
#define API(name) JOIN(ISA, name)
#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef int32_t loose_whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Few channels are better served by two instructions of half the width a cycle. */
enum { HALF = LANES / 2 };
typedef float half __attribute__((vector_size(2 * LANES)));
typedef float loose_half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
#if LANES == 16
#define HALVES 1
#else
#define HALVES 0
#endif

/* Accumulators that fit into the registers beside the operands. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define WIDE 1
#else
#define WIDE 0
#endif
enum { MOST_O = WIDE ? 4 : 2 }; /* outputs of a linear layer's forward at once */

/* The forward reads words of four bytes: a float, or two neighbours of a row in bf16. */
#if defined(__AVX512BF16__)
#define BF16 1
typedef uint16_t number;
#else
#define BF16 0
typedef float number;
#endif
enum { EACH = BF16 ? 2 : 1 }; /* numbers in a word */

/* Whether a first layer of few channels goes by planes, see there. */
#define PLANES (HALVES && !BF16)
typedef float word __attribute__((aligned(2), may_alias));
typedef uint16_t short_number __attribute__((may_alias));

enum { L = LANES, MOST_LAYERS = 16 };
enum { CONVOLUTION = 0, LINEAR = 1, FIELDS = 12 };
enum { NONE, UPDATE, SET, ADD }; /* what becomes of a layer's weight gradient */

/* ---- vectors */

INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec v) { *(loose *)p = v; }
INLINE whole choose(whole mask, whole a, whole b) { return (mask & a) | (~mask & b); }

/* The first n of L floats, the others 0. */
INLINE vec load_first(const float *p, long n) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float part[L] = {0};
    for (long i = 0; i < n; i++)
        part[i] = p[i];
    return load(part);
#endif
}

INLINE void store_first(float *p, vec v, long n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#else
    for (long i = 0; i < n; i++)
        p[i] = v[i];
#endif
}

INLINE float total(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    float sum = 0;
    for (int i = 0; i < L; i++)
        sum += v[i];
    return sum;
#endif
}

/* ---- words: sums of products, and rounding to bf16 */

#if BF16
INLINE vec multiply(vec sum, vec w, vec x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
INLINE vec tile_multiply(vec sum, vec w, float x) { return multiply(sum, w, _mm512_set1_ps(x)); }
INLINE half small_multiply(half sum, half w, float x) {
    return _mm256_dpbf16_ps(sum, (__m256bh)w, (__m256bh)_mm256_set1_ps(x));
}

/* The bf16 numbers next to those of two vectors, low first. */
INLINE vec packed(vec low, vec high) { return (vec)_mm512_cvtne2ps_pbh(high, low); }

/* The same of vectors that are rounded already, their numbers in turns. */
INLINE vec paired(vec low, vec high) {
    const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return (vec)_mm512_or_si512(_mm512_srli_epi32((__m512i)low, 16), _mm512_and_si512((__m512i)high, upper));
}

/* The nearest bf16 number, as a float. */
INLINE vec rounded(vec v) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh(v);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}

/* n floats as bf16 numbers, zeros after them up to a whole vector; as: NULL or for the same as floats. */
static void lower(const float *from, long n, void *to, float *as) {
    float *out = to;
    for (long i = 0; i < n; i += 2 * L, out += L) {
        const long low = n - i < L ? n - i : L, high = n - i < 2 * L ? n - i - low : L;
        const vec a = load_first(from + i, low), b = load_first(from + i + L, high);
        store(out, packed(a, b));
        if (as) {
            store_first(as + i, rounded(a), low);
            store_first(as + i + L, rounded(b), high);
        }
    }
}
#else
INLINE vec multiply(vec sum, vec w, vec x) { return sum + w * x; }
INLINE vec tile_multiply(vec sum, vec w, float x) { return sum + w * x; }
INLINE half small_multiply(half sum, half w, float x) { return sum + w * x; }
INLINE vec rounded(vec v) { return v; }
INLINE vec paired(vec low, vec high) { return low + high; } /* never called */
#endif

/* ---- a network */

typedef struct {
    long kind, in, out; /* channels, or features */
    long h, w, kh, kw;  /* of the input image, of the kernel */
    long weight, bias;  /* where they start in the flat vector */
    long norm, running; /* of batch normalisation: scale and offset; mean and variance. norm < 0: none */
    int relu;
    /* convolutions */
    long ph, pw, run, runs, outs; /* pooled image; kw x in; run and out rounded up to vectors */
    float *ahead, *bias_ahead;    /* (kh, words of run, outs): weights for the forward */
    float *back;                  /* (out, kh, runs): for the input's gradient */
    float *slope;                 /* (out, kh, runs): the weights' gradient */
    int32_t *which;               /* (n, ph, pw, out): 0 to 3, the window's first maximum */
    /* input of this layer and its gradient; per sample so many floats */
    float *x, *dx;
    const number *read; /* x as the forward reads it */
    long stride;
    const float *planes; /* where the forward goes by planes: x in torch's layout */
    long plane_stride;
    /* batch normalisation; vectors of ``out`` rounded up */
    float *z; /* what is normalised, then its gradient: (n, positions, outs), or (n, row) of linear layers */
    long row;
    float *mean, *inverse, *a, *b; /* inverse: 1 / deviation; y = a z + b */
    float *alpha, *beta;           /* z's gradient is a times that of y, + alpha + beta z */
    double *sums, *sums_z;         /* of y's gradient, of its product with z */
} layer;

typedef struct {
    int32_t at;
    float g;
} entry;

typedef struct {
    long layers, most, size; /* size: of a sample */
    int normalised;
    long classes, stride;    /* of the scores */
    layer l[MOST_LAYERS];
    float *scores, *slope;   /* (n, stride) */
    float *images, *dimages; /* the last convolution's output and its gradient */
    int64_t *labels;
    float *rows, *row; /* two rows of a convolution's output, or all its planes; one channel's weights */
    float *planes;     /* the samples in torch's layout, where both layouts are read */
    /* BF16: some of a layer's weights, rounded; and in pairs of samples a linear layer's input, and
     * its output's gradient in pairs of samples and of outputs. */
    float *weights, *x_down, *dy_down, *dy_across;
    entry *list;
    void *memory;
} net;

/* How a parameter follows its gradient. */
typedef struct {
    float lr, momentum, decay, strength;
    const float *anchor, *shift;
    float *velocity;
} rule;

static long fitting(long n) { return HALVES && n <= HALF ? HALF : L; }
static long up(long n, long to) { return (n + to - 1) / to * to; }

/* Whether the first layer's forward goes by planes. */
static int plane_wise(const layer *l) {
    return PLANES && l->kind == CONVOLUTION && l->out <= HALF && l->norm < 0;
}

/* Of a convolution's output, before pooling. */
static long height(const layer *l) { return l->h - l->kh + 1; }
static long width(const layer *l) { return l->w - l->kw + 1; }

/* From the first position of a plane's output that is used to the last. */
static long positions(const layer *l) { return (2 * l->ph - 1) * l->w + 2 * l->pw; }

/* Words of a linear layer's row of weights. */
static long words(const layer *l) { return BF16 ? up(l->in, 2 * L) / 2 : l->in; }

/* Buffers come from one block: first counted (block NULL), then handed out. */
static void *take(char *block, size_t *used, long bytes) {
    void *found = block ? block + *used : NULL;
    *used += (size_t)up(bytes + 8 * L, 64);
    return found;
}

static void place(net *n, char *block, size_t *used) {
    long rows = 0, row = 0, list = 0, images = 0, kept = 0, in = 0, out = 0;
    for (long k = 0; k < n->layers; k++) {
        layer *l = &n->l[k];
        l->x = take(block, used, 4 * l->stride * n->most);
        l->dx = take(block, used, 4 * l->stride * n->most);
        l->read = BF16 ? take(block, used, 2 * l->stride * n->most) : (void *)l->x;
        const long read = l->kind == LINEAR ? MOST_O * words(l) : l->out * l->in * l->kh * l->kw;
        if (BF16 && read > kept)
            kept = read;
        if (BF16 && l->kind == LINEAR && l->stride > in)
            in = l->stride;
        if (BF16 && l->kind == LINEAR && up(l->out, 2 * L) > out)
            out = up(l->out, 2 * L);
        const long channels = up(l->out, L), spots = l->kind == LINEAR ? 1 : height(l) * width(l);
        if (l->norm >= 0) {
            l->row = l->kind == LINEAR ? channels : spots * l->outs;
            l->z = take(block, used, 4 * l->row * n->most);
            l->mean = take(block, used, 4 * channels);
            l->inverse = take(block, used, 4 * channels);
            l->a = take(block, used, 4 * channels);
            l->b = take(block, used, 4 * channels);
            l->alpha = take(block, used, 4 * channels);
            l->beta = take(block, used, 4 * channels);
            l->sums = take(block, used, 8 * channels);
            l->sums_z = take(block, used, 8 * channels);
            if (spots > list)
                list = spots;
        }
        if (l->kind == LINEAR)
            continue;
        long weights = l->kh * l->runs * l->out, windows = l->ph * l->pw;
        l->ahead = take(block, used, 4 * l->kh * l->run * l->outs);
        l->bias_ahead = take(block, used, 4 * l->outs);
        l->back = take(block, used, 4 * weights);
        l->slope = take(block, used, 4 * weights);
        l->which = take(block, used, 4 * windows * l->out * n->most);
        images = l[1].stride;
        if (4 * l->pw * l->outs > rows)
            rows = 4 * l->pw * l->outs;
        if (k == 0 && plane_wise(l)) {
            if (l->out * up(positions(l), L) > rows)
                rows = l->out * up(positions(l), L);
            l->plane_stride = l->in == 1 ? l->stride : up(n->size, L) + 16;
            n->planes = take(block, used, l->in == 1 ? 0 : 4 * l->plane_stride * n->most);
            l->planes = l->in == 1 ? l->x : n->planes;
        }
        if (l->in * l->kh * l->kw > row)
            row = l->in * l->kh * l->kw;
        if (windows > list)
            list = windows;
        if (4 * l->out > list)
            list = 4 * l->out;
    }
    n->scores = take(block, used, 4 * n->stride * n->most);
    n->slope = take(block, used, 4 * n->stride * n->most);
    n->images = take(block, used, 4 * images * n->most);
    n->dimages = take(block, used, 4 * images * n->most);
    n->labels = take(block, used, 8 * n->most);
    n->rows = take(block, used, 4 * rows);
    n->row = take(block, used, 4 * row);
    n->weights = take(block, used, 4 * kept);
    n->x_down = take(block, used, 4 * in * ((n->most + 1) / 2));
    n->dy_down = take(block, used, 4 * out * ((n->most + 1) / 2));
    n->dy_across = take(block, used, 2 * out * n->most);
    n->list = take(block, used, (long)sizeof(entry) * (list + 4 * L));
}

EXPORT void API(free)(net *n) {
    if (n)
        free(n->memory);
    free(n);
}

/* spec: FIELDS numbers a layer: kind, in, out, h, w, kh, kw, weight, bias, relu, norm, running.
 * NULL: no memory. */
EXPORT net *API(new)(const int64_t *spec, int64_t layers, int64_t most) {
    if (layers < 1 || layers > MOST_LAYERS || most < 1)
        return NULL;
    net *n = calloc(1, sizeof(net));
    if (!n)
        return NULL;
    n->layers = layers;
    n->most = most;
    for (long k = 0; k < layers; k++) {
        layer *l = &n->l[k];
        const int64_t *s = spec + FIELDS * k;
        l->kind = s[0], l->in = s[1], l->out = s[2], l->h = s[3], l->w = s[4], l->kh = s[5], l->kw = s[6];
        l->weight = s[7], l->bias = s[8], l->relu = (int)s[9], l->norm = s[10], l->running = s[11];
        n->normalised |= l->norm >= 0;
        long floats = l->in;
        if (l->kind == CONVOLUTION) {
            l->ph = (l->h - l->kh + 1) / 2, l->pw = (l->w - l->kw + 1) / 2;
            l->run = l->kw * l->in, l->runs = up(l->run, fitting(l->run)),
            l->outs = up(l->out, fitting(l->out));
            floats *= l->h * l->w;
        }
        if (k == 0)
            n->size = floats;
        /* One vector more than needed: samples a power of two apart would share cache lines' sets. */
        l->stride = up(floats, 2 * L) + 16;
    }
    n->classes = n->l[layers - 1].out;
    n->stride = up(n->classes, L);
    size_t bytes = 0;
    place(n, NULL, &bytes);
    n->memory = aligned_alloc(64, bytes);
    if (!n->memory) {
        API(free)(n);
        return NULL;
    }
    memset(n->memory, 0, bytes);
    bytes = 0;
    place(n, n->memory, &bytes);
    return n;
}

/* ---- convolution, forward */

/* P positions x V vectors of output channels; in: where each position's patch starts. */
#define TILE_OF(name, type, loose, V, P)                                                        \
    static void name##_##V##_##P(const layer *l, const number *const *in, long v0, float *out) { \
        const long across = l->w * l->in, run = l->run, outs = l->outs;                         \
        const long lanes = sizeof(type) / 4;                                                    \
        const float *w = l->ahead + v0 * lanes;                                                 \
        type acc[P][V];                                                                         \
        UNROLL                                                                                  \
        for (int v = 0; v < V; v++) {                                                           \
            type b = *(const loose *)(l->bias_ahead + (v0 + v) * lanes);                        \
            UNROLL                                                                              \
            for (int p = 0; p < P; p++)                                                         \
                acc[p][v] = b;                                                                  \
        }                                                                                       \
        for (long ky = 0; ky < l->kh; ky++)                                                     \
            for (long r = ky * across; r < ky * across + run; r += EACH, w += outs) {           \
                type wv[V];                                                                     \
                UNROLL                                                                          \
                for (int v = 0; v < V; v++)                                                     \
                    wv[v] = *(const loose *)(w + v * lanes);                                    \
                UNROLL                                                                          \
                for (int p = 0; p < P; p++) {                                                   \
                    float x = *(const word *)(in[p] + r);                                       \
                    UNROLL                                                                      \
                    for (int v = 0; v < V; v++)                                                 \
                        acc[p][v] = name##_multiply(acc[p][v], wv[v], x);                       \
                }                                                                               \
            }                                                                                   \
        UNROLL                                                                                  \
        for (int p = 0; p < P; p++)                                                             \
            UNROLL                                                                              \
        for (int v = 0; v < V; v++)                                                             \
            *(loose *)(out + p * outs + (v0 + v) * lanes) = acc[p][v];                          \
    }
#define TILE(V, P) TILE_OF(tile, vec, loose, V, P)
#define TILES6(V) TILE(V, 1) TILE(V, 2) TILE(V, 3) TILE(V, 4) TILE(V, 5) TILE(V, 6)
#define TILES12(V) TILES6(V) TILE(V, 7) TILE(V, 8) TILE(V, 9) TILE(V, 10) TILE(V, 11) TILE(V, 12)
#define NAMES6(V) {tile_##V##_1, tile_##V##_2, tile_##V##_3, tile_##V##_4, tile_##V##_5, tile_##V##_6}
#define NAMES12(V)                                                                         \
    {tile_##V##_1, tile_##V##_2, tile_##V##_3, tile_##V##_4,  tile_##V##_5,  tile_##V##_6, \
     tile_##V##_7, tile_##V##_8, tile_##V##_9, tile_##V##_10, tile_##V##_11, tile_##V##_12}
typedef void tile(const layer *, const number *const *, long, float *);
TILES12(1)
#if WIDE
TILES12(2)
TILES6(3)
TILES6(4)
static tile *const TILES[4][12] = {NAMES12(1), NAMES12(2), NAMES6(3), NAMES6(4)};
enum { MOST_V = 4 };
static const int MOST_P[4] = {12, 12, 6, 6};
#else
TILES6(2)
static tile *const TILES[2][12] = {NAMES12(1), NAMES6(2)};
enum { MOST_V = 2 };
static const int MOST_P[2] = {12, 6};
#endif

#if HALVES
#define SMALL(P) TILE_OF(small, half, loose_half, 1, P)
SMALL(1)
SMALL(2) SMALL(3) SMALL(4) SMALL(5) SMALL(6) SMALL(7) SMALL(8) static tile *const SMALLS[8] = {
    small_1_1, small_1_2, small_1_3, small_1_4, small_1_5, small_1_6, small_1_7, small_1_8};
#else
static tile *const SMALLS[8] = {NULL};
#endif

/* Rows of output from ``row`` on, (rows, across, outs), without relu. */
static void some_rows(const layer *l, const number *in, float *rows, long row, long many, long across) {
    const long count = many * across, vectors = (l->outs + L - 1) / L;
    for (long v = 0; v < vectors;) {
        const long wide = vectors - v < MOST_V ? vectors - v : MOST_V;
        const int few = l->outs < L;
        const long most = few ? 8 : MOST_P[wide - 1], tiles = (count + most - 1) / most;
        for (long t = 0, p = 0, x = 0, y = row; t < tiles; t++) {
            const long end = count * (t + 1) / tiles;
            const number *starts[12];
            for (long i = p; i < end; i++, x++) {
                if (x == across)
                    x = 0, y++;
                starts[i - p] = in + (y * l->w + x) * l->in;
            }
            tile *work = few ? SMALLS[end - p - 1] : TILES[wide - 1][end - p - 1];
            work(l, starts, v, rows + p * l->outs);
            p = end;
        }
        v += wide;
    }
}

/* The largest of a window's four, and which it is; then relu. As in ATen the first of equals is it,
 * and NaN is larger than all. */
INLINE void find_largest(vec *best, const vec *other, int32_t *which) {
    whole at = {0};
    UNROLL
    for (int k = 0; k < 3; k++) {
        whole larger = (other[k] > *best) | (other[k] != other[k]);
        *best = (vec)choose(larger, (whole)other[k], (whole)*best);
        at = choose(larger, at - at + (k + 1), at);
    }
    *best = (vec)((whole)*best & ~(*best <= (vec){0}));
    *(loose_whole *)which = at;
}

/* relu and 2x2 maximum of two rows of so many positions across; norm: of a z + b. */
INLINE void pool_rows(const layer *l, const float *rows, long across, float *out, int32_t *which,
                      const int norm) {
    const long vectors = (l->outs + L - 1) / L;
    for (long x = 0; x < l->pw; x++)
        for (long v = 0; v < vectors; v++) {
            const float *upper = rows + 2 * x * l->outs + v * L, *lower = upper + across * l->outs;
            vec other[3] = {load(upper + l->outs), load(lower), load(lower + l->outs)};
            vec best = load(upper);
            if (norm) {
                const vec a = load(l->a + v * L), b = load(l->b + v * L);
                best = best * a + b;
                UNROLL
                for (int k = 0; k < 3; k++)
                    other[k] = other[k] * a + b;
            }
            /* Lanes beyond the last channel are overwritten by the next window. */
            find_largest(&best, other, which + x * l->out + v * L);
            store(out + x * l->out + v * L, best);
        }
}

#if PLANES
/* O output planes x P vectors of positions of a plane. A vector is neighbouring positions, across the
 * ends of rows: those that no kernel fits at are computed as well and never read. Sums are in the
 * order of TILE_OF. */
INLINE void plane_block(const int O, const int P, const layer *l, const float *x, long o0, float *out) {
    const long stride = up(positions(l), L);
    const float *w = l->ahead + o0;
    vec acc[HALF][4];
    UNROLL
    for (int o = 0; o < O; o++)
        UNROLL
    for (int p = 0; p < P; p++)
        acc[o][p] = (vec){0} + l->bias_ahead[o0 + o];
    for (long ky = 0; ky < l->kh; ky++)
        for (long kx = 0; kx < l->kw; kx++)
            for (long c = 0; c < l->in; c++, w += l->outs) {
                const float *from = x + (c * l->h + ky) * l->w + kx;
                vec xv[4];
                UNROLL
                for (int p = 0; p < P; p++)
                    xv[p] = load(from + p * L);
                UNROLL
                for (int o = 0; o < O; o++)
                    UNROLL
                for (int p = 0; p < P; p++)
                    acc[o][p] = acc[o][p] + xv[p] * w[o];
            }
    UNROLL
    for (int o = 0; o < O; o++)
        UNROLL
    for (int p = 0; p < P; p++)
        store(out + (o0 + o) * stride + p * L, acc[o][p]);
}

INLINE void plane_rows(const int O, const layer *l, const float *x, long o0, float *out) {
    const long end = up(positions(l), L);
    long i = 0;
    for (; i + 4 * L <= end; i += 4 * L)
        plane_block(O, 4, l, x + i, o0, out + i);
    if (i + 2 * L <= end)
        plane_block(O, 2, l, x + i, o0, out + i), i += 2 * L;
    if (i < end)
        plane_block(O, 1, l, x + i, o0, out + i);
}

static void convolve_planes(const layer *l, const float *x, float *out) {
    for (long o = 0; o < l->out;) {
        const long left = l->out - o;
        if (left >= 6)
            plane_rows(6, l, x, o, out), o += 6;
        else if (left >= 3)
            plane_rows(3, l, x, o, out), o += 3;
        else
            plane_rows(1, l, x, o, out), o++;
    }
}

/* As pool_rows, of planes. */
static void pool_planes(const layer *l, const float *planes, float *out, int32_t *which) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const long stride = up(positions(l), L);
    for (long o = 0; o < l->out; o++)
        for (long py = 0; py < l->ph; py++)
            for (long x = 0; x < l->pw; x += L) {
                const float *upper = planes + o * stride + 2 * (py * l->w + x), *lower = upper + l->w;
                const vec a = load(upper), b = load(upper + L), c = load(lower), d = load(lower + L);
                const vec other[3] = {_mm512_permutex2var_ps(a, odd, b), _mm512_permutex2var_ps(c, even, d),
                                      _mm512_permutex2var_ps(c, odd, d)};
                vec best = _mm512_permutex2var_ps(a, even, b);
                float value[L];
                int32_t place[L];
                find_largest(&best, other, place);
                store(value, best);
                const long end = l->pw - x < L ? l->pw - x : L, at = (py * l->pw + x) * l->out + o;
                for (long i = 0; i < end; i++) {
                    out[at + i * l->out] = value[i];
                    which[at + i * l->out] = place[i];
                }
            }
}
#else
static void convolve_planes(const layer *l, const float *x, float *out) { (void)l, (void)x, (void)out; }
static void pool_planes(const layer *l, const float *planes, float *out, int32_t *which) {
    (void)l, (void)planes, (void)out, (void)which;
}
#endif

static void convolve(const net *n, const layer *l, long samples, float *out, long stride) {
    for (long s = 0; s < samples && l->planes; s++) {
        convolve_planes(l, l->planes + s * l->plane_stride, n->rows);
        pool_planes(l, n->rows, out + s * stride, l->which + s * l->ph * l->pw * l->out);
    }
    for (long s = 0; s < samples && !l->planes; s++)
        for (long py = 0; py < l->ph; py++) {
            long at = py * l->pw * l->out;
            some_rows(l, l->read + s * l->stride, n->rows, 2 * py, 2, 2 * l->pw);
            pool_rows(l, n->rows, 2 * l->pw, out + s * stride + at,
                      l->which + s * l->ph * l->pw * l->out + at, 0);
        }
}

/* ---- batch normalisation, forward */

#define EPSILON 1e-5f /* as torch's defaults */
#define MOMENTUM 0.1f

/* y = a z + b by the batch's own statistics, (samples, spots, outs) floats of z, which move the
 * running ones in ``moved``; NULL: by the running statistics in w. */
static void normalise(const layer *l, const float *w, long samples, long spots, long outs, float *moved) {
    const float *scale = w + l->norm, *offset = scale + l->out;
    const double count = (double)samples * (double)spots;
    for (long o = 0; o < l->out; o += L) {
        const long part = l->out - o < L ? l->out - o : L;
        double sums[L];
        for (int pass = 0; moved && pass < 2; pass++) {
            const vec mean = pass ? load(l->mean + o) : (vec){0};
            for (long i = 0; i < part; i++)
                sums[i] = 0;
            for (long s = 0; s < samples; s++) {
                vec acc[4] = {{0}, {0}, {0}, {0}};
                const float *z = l->z + s * l->row + o;
                long p = 0;
                for (; p + 4 <= spots; p += 4, z += 4 * outs)
                    UNROLL
                for (int k = 0; k < 4; k++) {
                    const vec v = load(z + k * outs) - mean;
                    acc[k] += pass ? v * v : v;
                }
                for (; p < spots; p++, z += outs) {
                    const vec v = load(z) - mean;
                    acc[0] += pass ? v * v : v;
                }
                float sample[L];
                store(sample, (acc[0] + acc[1]) + (acc[2] + acc[3]));
                for (long i = 0; i < part; i++)
                    sums[i] += sample[i];
            }
            for (long i = 0; i < part && !pass; i++)
                l->mean[o + i] = (float)(sums[i] / count);
        }
        for (long i = o; i < o + part; i++) {
            float variance = w[l->running + l->out + i];
            if (moved) {
                float *mean = moved + l->running + i, *spread = mean + l->out;
                variance = (float)(sums[i - o] / count);
                *mean += MOMENTUM * (l->mean[i] - *mean);
                *spread += MOMENTUM * ((float)(sums[i - o] / (count - 1)) - *spread);
            } else {
                l->mean[i] = w[l->running + i];
            }
            l->inverse[i] = 1 / sqrtf(variance + EPSILON);
            l->a[i] = scale[i] * l->inverse[i];
            l->b[i] = offset[i] - l->mean[i] * l->a[i];
        }
    }
}

static void convolve_normalised(const layer *l, const float *w, long samples, float *out, long stride,
                                float *moved) {
    const long across = width(l), spots = height(l) * across;
    for (long s = 0; s < samples; s++)
        some_rows(l, l->read + s * l->stride, l->z + s * l->row, 0, height(l), across);
    normalise(l, w, samples, spots, l->outs, moved);
    for (long s = 0; s < samples; s++)
        for (long py = 0; py < l->ph; py++) {
            const long at = py * l->pw * l->out;
            pool_rows(l, l->z + s * l->row + 2 * py * across * l->outs, across, out + s * stride + at,
                      l->which + s * l->ph * l->pw * l->out + at, 1);
        }
}

/* Of a linear layer: z into its relu(a z + b). */
static void rectify(const layer *l, const float *w, long samples, float *out, long stride, float *moved) {
    normalise(l, w, samples, 1, l->row, moved);
    for (long s = 0; s < samples; s++)
        for (long o = 0; o < l->out; o++) {
            const float v = l->z[s * l->row + o] * l->a[o] + l->b[o];
            out[s * stride + o] = v <= 0 ? 0 : v;
        }
}

/* Weights as the kernels read them. */
static void repack(const net *n, const layer *l, const float *w, int backward) {
    const long taps = l->kh * l->kw, each = l->in * taps;
    const float *from = w + l->weight;
#if BF16
    for (long i = 0; i < each * l->out; i += L) {
        const long some = each * l->out - i < L ? each * l->out - i : L;
        store_first(n->weights + i, rounded(load_first(from + i, some)), some);
    }
    from = n->weights;
    const long pairs = (l->run + 1) / 2;
    for (long o = 0; o < l->out; o++)
        for (long ky = 0; ky < l->kh; ky++)
            for (long kx = 0; kx < l->kw; kx++)
                for (long i = 0; i < l->in; i++) {
                    const long r = kx * l->in + i;
                    const float *value = from + o * each + i * taps + ky * l->kw + kx;
                    float *to = l->ahead + (ky * pairs + r / 2) * l->outs + o;
                    ((short_number *)to)[r % 2] = ((const short_number *)value)[1]; /* the upper half */
                }
#else
    (void)n;
    for (long i = 0; i < l->in; i++)
        for (long k = 0; k < taps; k++) {
            float *to = l->ahead + (k * l->in + i) * l->outs;
            for (long o = 0; o < l->out; o++)
                to[o] = from[o * each + i * taps + k];
        }
#endif
    for (long o = 0; o < l->out; o++)
        l->bias_ahead[o] = w[l->bias + o];
    if (!backward)
        return;
    for (long o = 0; o < l->out; o++)
        for (long ky = 0; ky < l->kh; ky++)
            for (long kx = 0; kx < l->kw; kx++) {
                float *to = l->back + (o * l->kh + ky) * l->runs + kx * l->in;
                for (long i = 0; i < l->in; i++)
                    to[i] = from[o * each + i * taps + ky * l->kw + kx];
            }
}

/* ---- convolution, backward */

/* R rows of V vectors: to[r] += sum of g x from[at][r] over the list. */
#define GATHER_OF(name, type, loose, R, V)                                                 \
    static void name##_##R##_##V(float *to, long to_row, const float *from, long from_row, \
                                 const entry *list, long entries) {                        \
        const long lanes = sizeof(type) / 4;                                               \
        type acc[R][V];                                                                    \
        UNROLL                                                                             \
        for (int r = 0; r < R; r++)                                                        \
            UNROLL                                                                         \
        for (int v = 0; v < V; v++)                                                        \
            acc[r][v] = *(const loose *)(to + r * to_row + v * lanes);                     \
        for (long e = 0; e < entries; e++) {                                               \
            const float *x = from + list[e].at;                                            \
            const float g = list[e].g;                                                     \
            UNROLL                                                                         \
            for (int r = 0; r < R; r++)                                                    \
                UNROLL                                                                     \
            for (int v = 0; v < V; v++)                                                    \
                acc[r][v] += *(const loose *)(x + r * from_row + v * lanes) * g;           \
        }                                                                                  \
        UNROLL                                                                             \
        for (int r = 0; r < R; r++)                                                        \
            UNROLL                                                                         \
        for (int v = 0; v < V; v++)                                                        \
            *(loose *)(to + r * to_row + v * lanes) = acc[r][v];                           \
    }
#define GATHER(R, V) GATHER_OF(gather, vec, loose, R, V)
typedef void gatherer(float *, long, const float *, long, const entry *, long);
#define NAMES4(R) gather_##R##_1, gather_##R##_2, gather_##R##_3, gather_##R##_4
GATHER(1, 1)
GATHER(1, 2) GATHER(1, 3) GATHER(1, 4) GATHER(1, 5) GATHER(1, 6) GATHER(1, 7) GATHER(1, 8) GATHER(1, 9)
    GATHER(1, 10) GATHER(2, 1) GATHER(2, 2) GATHER(2, 3) GATHER(2, 4) GATHER(2, 5) GATHER(3, 1)
        GATHER(3, 2) GATHER(3, 3) GATHER(3, 4) GATHER(4, 1) GATHER(4, 2) GATHER(4, 3) GATHER(5, 1)
            GATHER(5, 2)
#if WIDE
                GATHER(2, 6) GATHER(2, 7) GATHER(2, 8) GATHER(2, 9) GATHER(2, 10) GATHER(3, 5)
                    GATHER(3, 6) GATHER(3, 7) GATHER(3, 8) GATHER(4, 4) GATHER(4, 5) GATHER(4, 6)
                        GATHER(5, 3) GATHER(5, 4) GATHER(5, 5) static const
    int MOST_WIDE[5] = {10, 10, 8, 6, 5};
static gatherer *const GATHERERS[5][10] = {
    {NAMES4(1), gather_1_5, gather_1_6, gather_1_7, gather_1_8, gather_1_9, gather_1_10},
    {NAMES4(2), gather_2_5, gather_2_6, gather_2_7, gather_2_8, gather_2_9, gather_2_10},
    {NAMES4(3), gather_3_5, gather_3_6, gather_3_7, gather_3_8},
    {NAMES4(4), gather_4_5, gather_4_6},
    {gather_5_1, gather_5_2, gather_5_3, gather_5_4, gather_5_5},
};
#else
                static const int MOST_WIDE[5] = {10, 5, 4, 3, 2};
static gatherer *const GATHERERS[5][10] = {
    {NAMES4(1), gather_1_5, gather_1_6, gather_1_7, gather_1_8, gather_1_9, gather_1_10},
    {NAMES4(2), gather_2_5},
    {NAMES4(3)},
    {gather_4_1, gather_4_2, gather_4_3},
    {gather_5_1, gather_5_2},
};
#endif

#if HALVES
#define FEW(R) GATHER_OF(few, half, loose_half, R, 1)
FEW(1)
FEW(2) FEW(3) FEW(4)
    FEW(5) static gatherer *const FEWS[5] = {few_1_1, few_2_1, few_3_1, few_4_1, few_5_1};
#else
static gatherer *const FEWS[5] = {NULL};
#endif

/* kh rows of ``runs`` floats, in pieces that fit into the registers. */
static void gather(const layer *l, float *to, long to_row, const float *from, long from_row,
                   const entry *list, long entries) {
    const long vectors = (l->runs + L - 1) / L;
    for (long v = 0; v < vectors;) {
        const long pieces = (vectors - v + MOST_WIDE[0] - 1) / MOST_WIDE[0];
        const long wide = (vectors - v + pieces - 1) / pieces;
        long rows = 5;
        while (MOST_WIDE[rows - 1] < wide)
            rows--;
        for (long ky = 0; ky < l->kh; ky += rows) {
            const long high = l->kh - ky < rows ? l->kh - ky : rows;
            gatherer *work = l->runs < L ? FEWS[high - 1] : GATHERERS[high - 1][wide - 1];
            work(to + ky * to_row + v * L, to_row, from + ky * from_row + v * L, from_row, list, entries);
        }
        v += wide;
    }
}

/* Sample after sample adds into the weights' gradient ``slope``; dx: also the input's gradient. */
static void convolve_back(const net *n, const layer *l, long samples, const float *out, float *dout,
                          long stride, int weights, int dx) {
    const long windows = l->ph * l->pw, across = l->w * l->in, kernel = l->kh * l->runs;
    const int32_t shift[4] = {0, (int32_t)l->in, (int32_t)across, (int32_t)(across + l->in)};
    if (weights)
        memset(l->slope, 0, (size_t)(4 * kernel * l->out));
    for (long s = 0; s < samples; s++) {
        const float *x = l->x + s * l->stride;
        const int32_t *which = l->which + s * windows * l->out;
        float *g = dout + s * stride;
        for (long i = 0; i < windows * l->out; i++)
            g[i] = out[s * stride + i] <= 0 ? 0 : g[i];
        for (long o = 0; weights && o < l->out; o++) {
            long entries = 0;
            for (long py = 0, i = o; py < l->ph; py++)
                for (long px = 0; px < l->pw; px++, i += l->out) {
                    n->list[entries].at = (int32_t)(2 * (py * across + px * l->in)) + shift[which[i]];
                    n->list[entries].g = g[i];
                    entries += g[i] != 0;
                }
            if (entries)
                gather(l, l->slope + o * kernel, l->runs, x, across, n->list, entries);
        }
        if (!dx)
            continue;
        float *to = l->dx + s * l->stride;
        memset(to, 0, (size_t)(4 * l->stride));
        for (long i = 0; i < windows; i++) {
            long entries[4] = {0};
            for (long o = 0; o < l->out; o++) {
                const float v = g[i * l->out + o];
                const int32_t at = which[i * l->out + o];
                entry *e = n->list + at * l->out + entries[at];
                e->at = (int32_t)(o * kernel), e->g = v;
                entries[at] += v != 0;
            }
            float *corner = to + 2 * (i / l->pw * across + i % l->pw * l->in);
            for (int k = 0; k < 4; k++)
                if (entries[k])
                    gather(l, corner + shift[k], across, l->back, l->runs, n->list + k * l->out,
                           entries[k]);
        }
    }
}

/* ---- SGD */

INLINE vec stepped(const rule *r, const int plain, long i, vec w, vec g, const int part, long n) {
    if (plain)
        return w - g * r->lr;
    if (r->decay != 0)
        g += w * r->decay;
    if (r->anchor)
        g += (w - (part ? load_first(r->anchor + i, n) : load(r->anchor + i))) * r->strength;
    if (r->shift)
        g += part ? load_first(r->shift + i, n) : load(r->shift + i);
    if (r->velocity) {
        g += (part ? load_first(r->velocity + i, n) : load(r->velocity + i)) * r->momentum;
        if (part)
            store_first(r->velocity + i, g, n);
        else
            store(r->velocity + i, g);
    }
    return w - g * r->lr;
}

/* w[at .. at + n - 1] follows the gradient g[0 .. n - 1]; i counts from the vectors' beginning. */
static void descend(const rule *r, float *w, const float *g, long at, long n) {
    long i = 0;
    for (; i + L <= n; i += L)
        store(w + at + i, stepped(r, 0, at + i, load(w + at + i), load(g + i), 0, 0));
    if (i == n)
        return;
    vec last = stepped(r, 0, at + i, load_first(w + at + i, n - i), load_first(g + i, n - i), 1, n - i);
    store_first(w + at + i, last, n - i);
}

static void put(int mode, const rule *r, float *w, float *g, const float *found, long at, long count) {
    if (mode == UPDATE)
        descend(r, w, found, at, count);
    if (mode == SET)
        memcpy(g + at, found, (size_t)(4 * count));
    for (long i = 0; mode == ADD && i < count; i++)
        g[at + i] += found[i];
}

static void put_convolution(const net *n, const layer *l, int mode, const rule *r, float *w, float *g) {
    const long taps = l->kh * l->kw, each = l->in * taps;
    for (long o = 0; o < l->out; o++) {
        for (long ky = 0; ky < l->kh; ky++)
            for (long kx = 0; kx < l->kw; kx++) {
                const float *from = l->slope + (o * l->kh + ky) * l->runs + kx * l->in;
                float *to = n->row + ky * l->kw + kx;
                for (long i = 0; i < l->in; i++)
                    to[i * taps] = from[i];
            }
        put(mode, r, w, g, n->row, l->weight + o * each, each);
    }
}

/* Sum of the gradient over samples and ``count`` windows, into out[0 .. width - 1]. */
static void put_bias(const layer *l, long samples, const float *g, long stride, long count, int mode,
                     const rule *r, float *w, float *slope) {
    float sum[L];
    for (long o = 0; o < l->out; o += L) {
        const long part = l->out - o < L ? l->out - o : L;
        vec acc = {0};
        for (long s = 0; s < samples; s++)
            for (long i = 0; i < count; i++)
                acc += load(g + s * stride + i * l->out + o);
        store(sum, acc);
        put(mode, r, w, slope, sum, l->bias + o, part);
    }
}

/* ---- batch normalisation, backward */

/* From the sums over ``count`` numbers a channel: steps of scale and offset, and alpha and beta, which are
 * 0 by the running statistics (own: by the batch's). */
static void pass_on(const layer *l, double count, int own, int mode, const rule *r, float *w, float *g) {
    for (long o = 0; o < l->out; o++) {
        const double sum = l->sums[o], mean = (double)l->mean[o], inverse = (double)l->inverse[o];
        const double by_unit = (l->sums_z[o] - sum * mean) * inverse; /* unit: (z - mean) / deviation */
        const double a = own ? (double)l->a[o] / count : 0;
        l->alpha[o] = (float)(a * (by_unit * inverse * mean - sum));
        l->beta[o] = (float)(-a * by_unit * inverse);
        const float scale = (float)by_unit, offset = (float)sum;
        put(mode, r, w, g, &scale, l->norm + o, 1);
        put(mode, r, w, g, &offset, l->norm + l->out + o, 1);
    }
}

static void sum_nothing(const layer *l) {
    memset(l->sums, 0, (size_t)(8 * l->out));
    memset(l->sums_z, 0, (size_t)(8 * l->out));
}

/* The bias of a layer that is normalised: the batch's own mean takes it away again. */
static void put_normalised_bias(const layer *l, int own, int mode, const rule *r, float *w, float *g) {
    for (long o = 0; o < l->out; o++) {
        const float found = own ? 0 : l->a[o] * (float)l->sums[o];
        put(mode, r, w, g, &found, l->bias + o, 1);
    }
}

static void shift_all(float *restrict z, const float *restrict alpha, const float *restrict beta, long spots,
                      long outs) {
    const long wide = fitting(outs);
    for (long p = 0; p < spots; p++, z += outs)
        for (long o = 0; o < outs; o += wide)
            for (long i = o; i < o + wide; i++)
                z[i] = alpha[i] + beta[i] * z[i];
}

/* As convolve_back, where z was normalised. */
static void convolve_normalised_back(const net *n, const layer *l, long samples, const float *out,
                                     float *dout, long stride, int own, int mode, int norm_mode, int dx,
                                     const rule *r, float *w, float *g) {
    const long windows = l->ph * l->pw, across = l->w * l->in, kernel = l->kh * l->runs, outs = l->outs;
    const long wide = width(l), spots = height(l) * wide;
    const long corner[4] = {0, outs, wide * outs, (wide + 1) * outs};
    sum_nothing(l);
    for (long s = 0; s < samples; s++)
        for (long i = 0, k = 0; i < windows; i++) {
            const float *z = l->z + s * l->row + 2 * (i / l->pw * wide + i % l->pw) * outs;
            const int32_t *which = l->which + s * windows * l->out;
            float *dy = dout + s * stride;
            for (long o = 0; o < l->out; o++, k++) {
                dy[k] = out[s * stride + k] <= 0 ? 0 : dy[k];
                l->sums[o] += (double)dy[k];
                l->sums_z[o] += (double)dy[k] * (double)z[corner[which[k]] + o];
            }
        }
    pass_on(l, (double)(samples * spots), own, norm_mode, r, w, g);
    for (long s = 0; s < samples; s++) {
        shift_all(l->z + s * l->row, l->alpha, l->beta, spots, outs);
        const int32_t *which = l->which + s * windows * l->out;
        const float *dy = dout + s * stride;
        for (long i = 0, k = 0; i < windows; i++) {
            float *to = l->z + s * l->row + 2 * (i / l->pw * wide + i % l->pw) * outs;
            for (long o = 0; o < l->out; o++, k++)
                to[corner[which[k]] + o] += l->a[o] * dy[k];
        }
    }
    if (mode != NONE)
        memset(l->slope, 0, (size_t)(4 * kernel * l->out));
    for (long s = 0; s < samples; s++) {
        const float *x = l->x + s * l->stride, *dz = l->z + s * l->row;
        for (long o = 0; mode != NONE && o < l->out; o++) {
            for (long y = 0, i = 0; y < height(l); y++)
                for (long at = 0; at < wide; at++, i++)
                    n->list[i] = (entry){(int32_t)(y * across + at * l->in), dz[i * outs + o]};
            gather(l, l->slope + o * kernel, l->runs, x, across, n->list, spots);
        }
        if (!dx)
            continue;
        float *to = l->dx + s * l->stride;
        memset(to, 0, (size_t)(4 * l->stride));
        for (long y = 0; y < height(l); y++)
            for (long at = 0; at < wide; at++, dz += outs) {
                for (long o = 0; o < l->out; o++)
                    n->list[o] = (entry){(int32_t)(o * kernel), dz[o]};
                gather(l, to + y * across + at * l->in, across, l->back, l->runs, n->list, l->out);
            }
    }
    if (mode != NONE)
        put_convolution(n, l, mode, r, w, g);
    put_normalised_bias(l, own, mode, r, w, g);
}

/* Of a linear layer: the gradient of what follows its relu, ``dy``, becomes that of z. */
static void rectify_back(const layer *l, long samples, float *dy, long stride, int own, int norm_mode,
                         const rule *r, float *w, float *g) {
    sum_nothing(l);
    for (long s = 0; s < samples; s++)
        for (long o = 0; o < l->out; o++) {
            l->sums[o] += (double)dy[s * stride + o];
            l->sums_z[o] += (double)dy[s * stride + o] * (double)l->z[s * l->row + o];
        }
    pass_on(l, (double)samples, own, norm_mode, r, w, g);
    for (long s = 0; s < samples; s++)
        for (long o = 0; o < l->out; o++) {
            float *v = dy + s * stride + o;
            *v = l->a[o] * *v + (l->alpha[o] + l->beta[o] * l->z[s * l->row + o]);
        }
}

/* ---- linear, forward */

/* S samples x O outputs; rows of weights are ``in`` apart. */
#define DOTS(S, O)                                                                                \
    static void dots_##S##_##O(const layer *l, const float *x, const float *w, const float *bias, \
                               float *y, long y_stride) {                                         \
        const long in = words(l), xs = l->stride / EACH, rest = in % L;                           \
        vec acc[S][O];                                                                            \
        UNROLL                                                                                    \
        for (int s = 0; s < S; s++)                                                               \
            UNROLL                                                                                \
        for (int o = 0; o < O; o++)                                                               \
            acc[s][o] = (vec){0};                                                                 \
        for (long k = 0; k < in - rest; k += L) {                                                 \
            vec wv[O];                                                                            \
            UNROLL                                                                                \
            for (int o = 0; o < O; o++)                                                           \
                wv[o] = load(w + o * in + k);                                                     \
            UNROLL                                                                                \
            for (int s = 0; s < S; s++) {                                                         \
                vec xv = load(x + s * xs + k);                                                    \
                UNROLL                                                                            \
                for (int o = 0; o < O; o++)                                                       \
                    acc[s][o] = multiply(acc[s][o], wv[o], xv);                                   \
            }                                                                                     \
        }                                                                                         \
        if (rest) {                                                                               \
            vec wv[O];                                                                            \
            UNROLL                                                                                \
            for (int o = 0; o < O; o++)                                                           \
                wv[o] = load_first(w + o * in + in - rest, rest);                                 \
            UNROLL                                                                                \
            for (int s = 0; s < S; s++) {                                                         \
                vec xv = load(x + s * xs + in - rest);                                            \
                UNROLL                                                                            \
                for (int o = 0; o < O; o++)                                                       \
                    acc[s][o] = multiply(acc[s][o], wv[o], xv);                                   \
            }                                                                                     \
        }                                                                                         \
        UNROLL                                                                                    \
        for (int s = 0; s < S; s++)                                                               \
            UNROLL                                                                                \
        for (int o = 0; o < O; o++) {                                                             \
            float v = bias[o] + total(acc[s][o]);                                                 \
            y[s * y_stride + o] = l->relu && l->norm < 0 && v <= 0 ? 0 : v;                       \
        }                                                                                         \
    }
#define DOTS5(O) DOTS(1, O) DOTS(2, O) DOTS(3, O) DOTS(4, O) DOTS(5, O)
#define NAMES5(O) {dots_1_##O, dots_2_##O, dots_3_##O, dots_4_##O, dots_5_##O}
typedef void dots(const layer *, const float *, const float *, const float *, float *, long);
DOTS5(1)
DOTS5(2)
#if WIDE
DOTS5(3)
DOTS5(4)
static dots *const DOTTERS[4][5] = {NAMES5(1), NAMES5(2), NAMES5(3), NAMES5(4)};
#else
static dots *const DOTTERS[2][5] = {NAMES5(1), NAMES5(2)};
#endif

static void connect(const net *n, const layer *l, const float *w, long samples, float *y, long stride) {
    const long blocks = (samples + 4) / 5;
    const float *x = (const void *)l->read;
    for (long o = 0; o < l->out;) {
        const long outs = l->out - o < MOST_O ? l->out - o : MOST_O;
        const float *rows = w + l->weight + o * l->in;
#if BF16
        for (long k = 0; k < outs; k++, rows += l->in)
            lower(rows, l->in, n->weights + k * words(l), NULL);
        rows = n->weights;
#else
        (void)n;
#endif
        for (long b = 0, s = 0; b < blocks; b++) {
            const long end = samples * (b + 1) / blocks;
            DOTTERS[outs - 1][end - s - 1](l, x + s * l->stride / EACH, rows, w + l->bias + o,
                                           y + s * stride + o, stride);
            s = end;
        }
        o += outs;
    }
}

/* ---- linear, backward */

typedef struct {
    const layer *l;
    const rule *r;
    /* Words: x and dy_down of EACH samples, dy_across of EACH outputs; both dy from the block's
     * first output on. */
    const float *x, *dy_down, *dy_across;
    long samples, x_stride, down_stride, across_stride, row;
    float *w, *g; /* of the whole network */
} job;

enum { WOVEN = BF16 ? 8 : 4 }; /* outputs at once */

/* O outputs x V vectors of inputs from input k on; part: only so many inputs in the one vector. */
INLINE void weave(const int O, const int V, const int mode, const int dx, const int plain, const job *j,
                  long k, const int part, long n) {
    const layer *l = j->l;
    const long in = l->in, at = l->weight + j->row * in + k;
    float *w = j->w + at, *g = j->g + at;
    if (dx) {
        vec wv[WOVEN][2];
        UNROLL
        for (int o = 0; o < O; o++)
            UNROLL
        for (int v = 0; v < V; v++)
            wv[o][v] = rounded(part ? load_first(w + o * in, n) : load(w + o * in + v * L));
        if (BF16) {
            UNROLL
            for (int o = 0; o < O; o += 2)
                UNROLL
            for (int v = 0; v < V; v++)
                wv[o / 2][v] = paired(wv[o][v], o + 1 < O ? wv[o + 1][v] : (vec){0});
        }
        for (long s = 0; s < j->samples; s++) {
            float *to = l->dx + s * l->stride + k;
            const word *dy = j->dy_across + s * j->across_stride;
            vec sum[2];
            UNROLL
            for (int v = 0; v < V; v++)
                sum[v] = load(to + v * L);
            UNROLL
            for (int o = 0; o < (O + EACH - 1) / EACH; o++) {
                UNROLL
                for (int v = 0; v < V; v++)
                    sum[v] = tile_multiply(sum[v], wv[o][v], dy[o]);
            }
            UNROLL
            for (int v = 0; v < V; v++)
                store(to + v * L, sum[v]);
        }
    }
    if (mode == NONE)
        return;
    vec acc[WOVEN][2];
    UNROLL
    for (int o = 0; o < O; o++)
        UNROLL
    for (int v = 0; v < V; v++)
        acc[o][v] = (vec){0};
    for (long s = 0; s < (j->samples + EACH - 1) / EACH; s++) {
        const float *x = j->x + s * j->x_stride + k;
        const word *dy = j->dy_down + s * j->down_stride;
        vec xv[2];
        UNROLL
        for (int v = 0; v < V; v++)
            xv[v] = load(x + v * L);
        UNROLL
        for (int o = 0; o < O; o++) {
            UNROLL
            for (int v = 0; v < V; v++)
                acc[o][v] = tile_multiply(acc[o][v], xv[v], dy[o]);
        }
    }
    UNROLL
    for (int o = 0; o < O; o++)
        UNROLL
    for (int v = 0; v < V; v++) {
        const long i = o * in + v * L;
        float *to = mode == UPDATE ? w + i : g + i;
        vec found = acc[o][v];
        if (mode != SET) {
            vec old = part ? load_first(to, n) : load(to);
            found = mode == ADD ? old + found : stepped(j->r, plain, at + i, old, found, part, n);
        }
        if (part)
            store_first(to, found, n);
        else
            store(to, found);
    }
}

INLINE void weave_rows(const int O, const int mode, const int dx, const int plain, const job *j,
                       long from, long to) {
    long k = from;
    for (; k + 2 * L <= to; k += 2 * L)
        weave(O, 2, mode, dx, plain, j, k, 0, 0);
    if (k + L <= to)
        weave(O, 1, mode, dx, plain, j, k, 0, 0), k += L;
    if (k < to)
        weave(O, 1, mode, dx, plain, j, k, 1, to - k);
}

#define WEAVER(name, mode, dx, plain)                               \
    static void name(const job *j, long outs, long from, long to) { \
        if (outs == WOVEN)                                          \
            weave_rows(WOVEN, mode, dx, plain, j, from, to);        \
        else if (EACH > 1 && outs == EACH)                          \
            weave_rows(EACH, mode, dx, plain, j, from, to);         \
        else                                                        \
            weave_rows(1, mode, dx, plain, j, from, to);            \
    }
typedef void weaver(const job *, long, long, long);
WEAVER(weave_dx, NONE, 1, 0)
WEAVER(weave_plain, UPDATE, 0, 1)
WEAVER(weave_plain_dx, UPDATE, 1, 1)
WEAVER(weave_update, UPDATE, 0, 0)
WEAVER(weave_update_dx, UPDATE, 1, 0)
WEAVER(weave_set, SET, 0, 0)
WEAVER(weave_set_dx, SET, 1, 0)
WEAVER(weave_add, ADD, 0, 0)
WEAVER(weave_add_dx, ADD, 1, 0)
static weaver *const WEAVERS[4][2] = {{NULL, weave_dx},
                                      {weave_update, weave_update_dx},
                                      {weave_set, weave_set_dx},
                                      {weave_add, weave_add_dx}};

static int is_plain(const rule *r) { return r->decay == 0 && !r->anchor && !r->shift && !r->velocity; }

#if BF16
/* Rows of n floats in words of two samples; the sample after an odd last one is 0. */
static void pair_samples(const float *from, long stride, long samples, long n, float *to, long to_stride) {
    for (long s = 0; s < samples; s += 2, to += to_stride)
        for (long i = 0; i < n; i += L) {
            const long some = n - i < L ? n - i : L;
            const float *one = from + s * stride + i;
            const vec low = rounded(load_first(one, some));
            const vec high = s + 1 < samples ? rounded(load_first(one + stride, some)) : (vec){0};
            store(to + i, paired(low, high));
        }
}
#endif

/* The matrix is read once and written once: its old values for dx, then its step. */
static void connect_back(const net *n, const layer *l, long samples, const float *dy, long dy_stride,
                         int mode, int dx, const rule *r, float *w, float *g) {
    weaver *work = WEAVERS[mode][dx];
    if (mode == UPDATE && is_plain(r))
        work = dx ? weave_plain_dx : weave_plain;
    if (dx)
        memset(l->dx, 0, (size_t)(4 * samples * l->stride));
#if BF16
    const long in = l->stride, out = up(l->out, 2 * L);
    pair_samples(l->x, l->stride, samples, l->in, n->x_down, in);
    pair_samples(dy, dy_stride, samples, l->out, n->dy_down, out);
    for (long s = 0; s < samples; s++)
        lower(dy + s * dy_stride, l->out, n->dy_across + s * out / 2, NULL);
    const job j = {l, r, n->x_down, n->dy_down, n->dy_across, samples, in, out, out / 2, 0, w, g};
#else
    (void)n;
    const job j = {l, r, l->x, dy, dy, samples, l->stride, dy_stride, dy_stride, 0, w, g};
#endif
    /* x and dx of so many inputs stay in the first-level cache. */
    long chunk = up(5000 / (samples * (1 + dx)) + 1, 2 * L);
    for (long from = 0; work && from < l->in; from += chunk) {
        const long to = from + chunk < l->in ? from + chunk : l->in;
        for (long o = 0; o < l->out;) {
            const long left = l->out - o, outs = left >= WOVEN ? WOVEN : left >= EACH ? EACH : 1;
            const job here = {l, r, j.x, j.dy_down + o, j.dy_across + o / EACH, samples, j.x_stride,
                              j.down_stride, j.across_stride, o, w, g};
            work(&here, outs, from, to);
            o += outs;
        }
    }
}

/* ---- the whole network */

/* One sample in torch's layout, as the first layer reads it. */
static void enter(const net *n, const float *restrict x, long s) {
    const layer *l = &n->l[0];
    float *restrict to = l->x + s * l->stride;
    const long pixels = l->h * l->w;
    if (l->kind == LINEAR || l->in == 1) {
        memcpy(to, x, (size_t)(4 * n->size));
        return;
    }
    if (l->planes)
        memcpy(n->planes + s * l->plane_stride, x, (size_t)(4 * n->size));
    if (l->in == 3) { /* colours: a loop that compilers turn into vectors */
        const float *one = x, *two = x + pixels, *three = two + pixels;
        for (long i = 0; i < pixels; i++)
            to[3 * i] = one[i], to[3 * i + 1] = two[i], to[3 * i + 2] = three[i];
        return;
    }
    for (long c = 0; c < l->in; c++)
        for (long i = 0; i < pixels; i++)
            to[i * l->in + c] = x[c * pixels + i];
}

/* Between a convolution and a linear layer: (windows, channels) and torch's (channels, windows). */
INLINE void flatten(const layer *l, float *images, long stride, float *rows, long row, long samples,
                    const int back) {
    const long windows = l->ph * l->pw;
    for (long s = 0; s < samples; s++)
        for (long o = 0; o < l->out; o++)
            for (long i = 0; i < windows; i++) {
                float *image = images + s * stride + i * l->out + o,
                      *flat = rows + s * row + o * windows + i;
                if (back)
                    *image = *flat;
                else
                    *flat = *image;
            }
}

/* Scores of the samples in the first layer's x; learn: a backward pass follows. moved: the vector
 * whose running statistics follow those of the batch, by which it goes; NULL: by the running ones. */
static void forward(const net *n, const float *w, long samples, int learn, float *moved) {
    for (long k = 0; k < n->layers; k++) {
        const layer *l = &n->l[k], *next = l + 1;
        const int last = k + 1 == n->layers;
        float *out = last ? n->scores : next->x;
        const long stride = last ? n->stride : next->stride;
#if BF16
        const long floats = l->kind == LINEAR ? l->in : l->in * l->h * l->w;
        for (long s = 0; s < samples; s++)
            lower(l->x + s * l->stride, floats, (number *)l->read + s * l->stride, l->x + s * l->stride);
#endif
        if (l->kind == LINEAR && l->norm >= 0) {
            connect(n, l, w, samples, l->z, l->row);
            rectify(l, w, samples, out, stride, moved);
            continue;
        }
        if (l->kind == LINEAR) {
            connect(n, l, w, samples, out, stride);
            continue;
        }
        repack(n, l, w, learn && k > 0);
        float *images = next->kind == LINEAR ? n->images : out;
        if (l->norm >= 0)
            convolve_normalised(l, w, samples, images, stride, moved);
        else
            convolve(n, l, samples, images, stride);
        if (next->kind == LINEAR)
            flatten(l, n->images, stride, out, stride, samples, 0);
    }
}

/* Loss of one sample. */
static double cross_entropy(const net *n, long s, int64_t label) {
    const float *score = n->scores + s * n->stride;
    float most = score[0], sum = 0;
    for (long c = 1; c < n->classes; c++)
        if (score[c] > most)
            most = score[c];
    for (long c = 0; c < n->classes; c++)
        sum += expf(score[c] - most);
    return (double)(logf(sum) + most) - (double)score[label];
}

/* Gradients of scale x the sum of the samples' losses, by their scores. */
static void softmax(const net *n, long samples, const int64_t *labels, float scale) {
    for (long s = 0; s < samples; s++) {
        const float *score = n->scores + s * n->stride;
        float *slope = n->slope + s * n->stride, most = score[0], sum = 0;
        for (long c = 1; c < n->classes; c++)
            if (score[c] > most)
                most = score[c];
        for (long c = 0; c < n->classes; c++)
            sum += slope[c] = expf(score[c] - most);
        for (long c = 0; c < n->classes; c++)
            slope[c] *= scale / sum;
        slope[labels[s]] -= scale;
    }
}

/* trained: a flag a layer, then, in normalised networks, one a layer's normalisation; what becomes of
 * the gradient is ``mode`` there. own: the forward went by the batch's own statistics. */
static void backward(const net *n, long samples, const uint8_t *trained, int own, int mode, const rule *r,
                     float *w, float *g) {
    long lowest = 0;
    while (trained && lowest < n->layers && !trained[lowest] &&
           (n->l[lowest].norm < 0 || !trained[n->layers + lowest]))
        lowest++;
    const float *dy = n->slope;
    long stride = n->stride;
    for (long k = n->layers - 1; k >= lowest; k--) {
        const layer *l = &n->l[k], *next = l + 1;
        const int last = k + 1 == n->layers, as = !trained || trained[k] ? mode : NONE;
        const int norm_as = l->norm >= 0 && (!trained || trained[n->layers + k]) ? mode : NONE;
        if (!last) {
            dy = next->dx, stride = next->stride;
            if (l->kind == LINEAR && l->relu)
                for (long s = 0; s < samples; s++)
                    for (long i = 0; i < l->out; i++)
                        next->dx[s * stride + i] = next->x[s * stride + i] <= 0 ? 0 : dy[s * stride + i];
        }
        if (l->kind == LINEAR && l->norm >= 0) {
            rectify_back(l, samples, next->dx, stride, own, norm_as, r, w, g);
            put_normalised_bias(l, own, as, r, w, g);
        }
        if (l->kind == LINEAR) {
            connect_back(n, l, samples, dy, stride, as, k > lowest, r, w, g);
            if (l->norm < 0)
                put_bias(l, samples, dy, stride, 1, as, r, w, g);
            continue;
        }
        const int flat = next->kind == LINEAR;
        const float *out = flat ? n->images : next->x;
        float *dout = flat ? n->dimages : next->dx;
        if (flat)
            flatten(l, dout, stride, next->dx, stride, samples, 1);
        if (l->norm >= 0) {
            convolve_normalised_back(n, l, samples, out, dout, stride, own, as, norm_as, k > lowest, r, w,
                                     g);
            continue;
        }
        convolve_back(n, l, samples, out, dout, stride, as != NONE, k > lowest);
        if (as == NONE)
            continue;
        put_convolution(n, l, as, r, w, g);
        put_bias(l, samples, dout, stride, l->ph * l->pw, as, r, w, g);
    }
}

static int known(const net *n, const int64_t *labels, long count) {
    for (long i = 0; i < count; i++)
        if (labels[i] < 0 || labels[i] >= n->classes)
            return 0;
    return 1;
}

/* ---- what Python calls; 0: done, 1: a label or a row that is not there, 2: a batch that is normalised
 * by its own statistics is larger than the workspace, or a single sample */

/* Scores of samples x, (count, classes). */
EXPORT int API(scores)(net *n, const float *w, const float *x, int64_t count, float *out) {
    for (long from = 0; from < count; from += n->most) {
        const long size = count - from < n->most ? count - from : n->most;
        for (long s = 0; s < size; s++)
            enter(n, x + (from + s) * n->size, s);
        forward(n, w, size, 0, NULL);
        for (long s = 0; s < size; s++)
            memcpy(out + (from + s) * n->classes, n->scores + s * n->stride, (size_t)(4 * n->classes));
    }
    return 0;
}

/* Adds the samples' losses to ``loss`` and their number of right answers to ``right``. */
EXPORT int API(judge)(net *n, const float *w, const float *x, const int64_t *y, int64_t count,
                      double *loss, int64_t *right) {
    if (!known(n, y, count))
        return 1;
    for (long from = 0; from < count; from += n->most) {
        const long size = count - from < n->most ? count - from : n->most;
        for (long s = 0; s < size; s++)
            enter(n, x + (from + s) * n->size, s);
        forward(n, w, size, 0, NULL);
        for (long s = 0; s < size; s++) {
            const float *score = n->scores + s * n->stride;
            long best = 0; /* as torch: the first of equals, and NaN is larger than all */
            for (long c = 1; c < n->classes; c++)
                if (score[c] > score[best] || (isnan(score[c]) && !isnan(score[best])))
                    best = c;
            *right += best == y[from + s];
            *loss += cross_entropy(n, s, y[from + s]);
        }
    }
    return 0;
}

/* Gradient of scale x the sum of the samples' losses: into g, or added to it. scores: NULL or
 * (count, classes). trained: NULL, or as for ``backward``; the gradients of other layers are left
 * alone, and what lies below the lowest trained layer is left out. moved: as for ``forward``. */
EXPORT int API(slope)(net *n, const float *w, const float *x, const int64_t *y, int64_t count,
                      float scale, float *g, int64_t add, float *scores, const uint8_t *trained,
                      float *moved) {
    if (!known(n, y, count))
        return 1;
    if (moved && n->normalised && (count > n->most || count < 2))
        return 2;
    for (long from = 0; from < count; from += n->most) {
        const long size = count - from < n->most ? count - from : n->most;
        for (long s = 0; s < size; s++)
            enter(n, x + (from + s) * n->size, s);
        forward(n, w, size, 1, moved);
        for (long s = 0; scores && s < size; s++)
            memcpy(scores + (from + s) * n->classes, n->scores + s * n->stride, (size_t)(4 * n->classes));
        softmax(n, size, y + from, scale);
        /* Modes other than UPDATE do not write to w. */
        const int mode = add || from ? ADD : SET;
        backward(n, size, trained, moved != NULL, mode, NULL, (float *)(uintptr_t)w, g);
    }
    return 0;
}

/* SGD in place on w over batches of the samples order[0 .. count - 1], rows of x and y. Batch
 * normalisation goes by the batch's statistics; a batch of one has none and goes by the running ones.
 * g: scratch of w's length, used where a batch is larger than the workspace. */
EXPORT int API(train)(net *n, float *w, float *g, const float *x, const int64_t *y, int64_t rows,
                      const int64_t *order, int64_t count, int64_t batch, const rule *r,
                      const uint8_t *trained) {
    for (long i = 0; i < count; i++)
        if (order[i] < 0 || order[i] >= rows || !known(n, y + order[i], 1))
            return 1;
    if (n->normalised && (batch < count ? batch : count) > n->most)
        return 2;
    for (long first = 0; first < count; first += batch) {
        const long all = count - first < batch ? count - first : batch;
        for (long from = 0; from < all; from += n->most) {
            const long size = all - from < n->most ? all - from : n->most;
            const int mode = all <= n->most ? UPDATE : from ? ADD : SET;
            for (long s = 0; s < size; s++) {
                const int64_t row = order[first + from + s];
                enter(n, x + row * n->size, s);
                n->labels[s] = y[row];
            }
            const int own = all > 1;
            forward(n, w, size, 1, own ? w : NULL);
            softmax(n, size, n->labels, 1.0f / (float)all);
            backward(n, size, trained, own, mode, r, w, g);
        }
        for (long k = 0; all > n->most && k < n->layers; k++) {
            const layer *l = &n->l[k];
            const long each = l->kind == LINEAR ? l->in : l->in * l->kh * l->kw;
            if (trained && !trained[k])
                continue;
            descend(r, w, g + l->weight, l->weight, each * l->out);
            descend(r, w, g + l->bias, l->bias, l->out);
        }
    }
    return 0;
}
