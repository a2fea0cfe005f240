/* liquid.c: the arithmetic. Fixed text; everything that belongs to one model is in model.h.
 * Weights of a matrix lie in blocks of four rows by four columns, columns in the order 0, 2, 1, 3; weights of four bits
 * lie four to an int16, each plus eight. */
#include "liquid.h"

#if defined(__ARM_FEATURE_SIMD32) && !defined(LIQUID_PORTABLE)
#define LIQUID_DSP 1
#else
#define LIQUID_DSP 0
#endif

#if defined(__GNUC__)
#define LIQUID_INLINE static inline __attribute__((always_inline, unused))
#else
#define LIQUID_INLINE static inline
#endif

/* the specification floors when it shifts; C99 leaves negative numbers to the compiler */
typedef char liquid_shift_must_floor[((-3) >> 1) == -2 ? 1 : -1];

#if defined(__GNUC__)
#define LIQUID_ONCE static __attribute__((noinline)) /* called from several places, kept once */
#else
#define LIQUID_ONCE static
#endif
#if defined(LIQUID_NET) && defined(__clang__)
#define LIQUID_SMALL static __attribute__((minsize, noinline)) /* a network of stages spends its time in rows4: the rest may be short */
#elif defined(LIQUID_NET) && defined(__GNUC__)
#define LIQUID_SMALL static __attribute__((optimize("Os"), noinline))
#else
#define LIQUID_SMALL static
#endif

typedef struct { int32_t bias, mul; } liquid_row; /* of a dense layer */
#ifdef LIQUID_HIDDEN4
typedef uint16_t liquid_hidden_w; /* four weights of four bits */
#else
typedef int8_t liquid_hidden_w;
#endif
#ifdef LIQUID_NET
typedef struct { int16_t bias, gain; } liquid_scale; /* of a normalised value */
typedef struct { /* three bytes a row beside its weights */
    uint64_t eps;
    const liquid_scale *norm; /* 0: not normalised */
    const liquid_hidden_w *w;
    const int16_t *bias; /* in units of `step` */
    const uint8_t *mul; /* in units of `unit` */
    int32_t step, unit;
    uint16_t rows, cols; /* in multiples of four */
    uint16_t n, bend; /* true rows; is the rectifier a hyperbolic tangent? */
} liquid_layer;
#else
typedef struct {
    const liquid_hidden_w *w;
    const liquid_row *row;
    int rows, cols; /* in multiples of four */
} liquid_layer;
#endif
typedef struct { int32_t push, decay; } liquid_pull; /* of an explicit step */
typedef struct { int32_t bias, mul; uint16_t leak, pull; } liquid_unit; /* fused: leak holds 1 + dt/tau; pull holds A + 2^15 */

#define LIQUID_TABLES
#include "model.h"

/* (a * m + 2^31) >> 32: scale down, round half up */
LIQUID_INLINE int32_t rescale(int32_t a, int32_t m)
{
#if LIQUID_DSP
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(a), "r"(m));
    return r;
#else
    return (int32_t)(((int64_t)a * m + INT64_C(0x80000000)) >> 32);
#endif
}

LIQUID_INLINE int32_t sat16(int32_t a)
{
#if LIQUID_DSP
    int32_t r;
    __asm__("ssat %0, #16, %1" : "=r"(r) : "r"(a));
    return r;
#else
    return a < -32768 ? -32768 : a > 32767 ? 32767 : a;
#endif
}

#if LIQUID_LAYERS && !defined(LIQUID_NET)
LIQUID_INLINE int16_t rectify(int32_t a)
{
    const int32_t y = sat16(a);
    return (int16_t)(y < 0 ? (y * LIQUID_SLOPE + 16384) >> 15 : y);
}
#endif

#if LIQUID_TANH == 2
/* hyperbolic tangent at 2^-15: linear interpolation in 128 intervals above zero, and the sign */
LIQUID_ONCE int32_t bend(int32_t z)
{
    const int32_t size = z < 0 ? -z : z, at = size > 32767 ? 32767 : size, p = liquid_tanh[at >> 8];
    const int32_t y = p + (((liquid_tanh[(at >> 8) + 1] - p) * (at & 255) + 128) >> 8);
    return z < 0 ? -y : y;
}
#elif LIQUID_TANH == 1
/* hyperbolic tangent at 2^-15: linear interpolation in 512 intervals over the whole range of z */
LIQUID_INLINE int32_t bend(int32_t z)
{
    const int16_t *t = liquid_tanh + 256 + (z >> 7);
    const int32_t p = t[0];
    return p + (((t[1] - p) * (z & 127) + 64) >> 7);
}
#endif

typedef struct { int32_t a, b, c, d; } liquid_four;

/* four rows at a time share the loads of x: each acc += sum over 4 * groups columns.
   "memory" stands for what the pointers lead to; a pointer cast would break the aliasing rules. */
LIQUID_INLINE liquid_four dot4(liquid_four acc, const int8_t *w, const int16_t *x, int groups)
{
#if LIQUID_DSP
    const int16_t *end = x + 4 * groups;
    uint32_t x0, x1, w0, w1, even;
    do {
        __asm__ volatile("ldrd   %[x0], %[x1], [%[x]], #8\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "sxtb16 %[e], %[w0]\n\t"
                         "sxtb16 %[w0], %[w0], ror #8\n\t"
                         "smlad  %[a], %[e], %[x0], %[a]\n\t"
                         "smlad  %[a], %[w0], %[x1], %[a]\n\t"
                         "sxtb16 %[e], %[w1]\n\t"
                         "sxtb16 %[w1], %[w1], ror #8\n\t"
                         "smlad  %[b], %[e], %[x0], %[b]\n\t"
                         "smlad  %[b], %[w1], %[x1], %[b]\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "sxtb16 %[e], %[w0]\n\t"
                         "sxtb16 %[w0], %[w0], ror #8\n\t"
                         "smlad  %[c], %[e], %[x0], %[c]\n\t"
                         "smlad  %[c], %[w0], %[x1], %[c]\n\t"
                         "sxtb16 %[e], %[w1]\n\t"
                         "sxtb16 %[w1], %[w1], ror #8\n\t"
                         "smlad  %[d], %[e], %[x0], %[d]\n\t"
                         "smlad  %[d], %[w1], %[x1], %[d]"
                         : [a] "+r"(acc.a), [b] "+r"(acc.b), [c] "+r"(acc.c), [d] "+r"(acc.d), [w] "+r"(w), [x] "+r"(x),
                           [x0] "=&r"(x0), [x1] "=&r"(x1), [w0] "=&r"(w0), [w1] "=&r"(w1), [e] "=&r"(even)
                         :
                         : "memory");
    } while (x != end);
#else
    for (; groups > 0; groups--, w += 16, x += 4) {
        acc.a += w[0] * x[0] + w[1] * x[2] + w[2] * x[1] + w[3] * x[3];
        acc.b += w[4] * x[0] + w[5] * x[2] + w[6] * x[1] + w[7] * x[3];
        acc.c += w[8] * x[0] + w[9] * x[2] + w[10] * x[1] + w[11] * x[3];
        acc.d += w[12] * x[0] + w[13] * x[2] + w[14] * x[1] + w[15] * x[3];
    }
#endif
    return acc;
}

#if defined(LIQUID_HIDDEN4) || defined(LIQUID_HEAD4) || defined(LIQUID_SKIP4)
/* the same with weights of four bits, plus eight each: what that adds is eight times the sum of x, see `eightfold` */
LIQUID_INLINE liquid_four dot4_small(liquid_four acc, const uint16_t *w, const int16_t *x, int groups)
{
#if LIQUID_DSP
    const int16_t *end = x + 4 * groups;
    const uint32_t mask = 0x000F000Fu;
    uint32_t x0, x1, w0, w1, e;
    do {
        __asm__ volatile("ldrd   %[x0], %[x1], [%[x]], #8\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "and    %[e], %[m], %[w0]\n\t"
                         "smlad  %[a], %[e], %[x0], %[a]\n\t"
                         "and    %[e], %[m], %[w0], lsr #4\n\t"
                         "smlad  %[a], %[e], %[x1], %[a]\n\t"
                         "and    %[e], %[m], %[w0], lsr #8\n\t"
                         "smlad  %[b], %[e], %[x0], %[b]\n\t"
                         "and    %[e], %[m], %[w0], lsr #12\n\t"
                         "smlad  %[b], %[e], %[x1], %[b]\n\t"
                         "and    %[e], %[m], %[w1]\n\t"
                         "smlad  %[c], %[e], %[x0], %[c]\n\t"
                         "and    %[e], %[m], %[w1], lsr #4\n\t"
                         "smlad  %[c], %[e], %[x1], %[c]\n\t"
                         "and    %[e], %[m], %[w1], lsr #8\n\t"
                         "smlad  %[d], %[e], %[x0], %[d]\n\t"
                         "and    %[e], %[m], %[w1], lsr #12\n\t"
                         "smlad  %[d], %[e], %[x1], %[d]"
                         : [a] "+r"(acc.a), [b] "+r"(acc.b), [c] "+r"(acc.c), [d] "+r"(acc.d), [w] "+r"(w), [x] "+r"(x),
                           [x0] "=&r"(x0), [x1] "=&r"(x1), [w0] "=&r"(w0), [w1] "=&r"(w1), [e] "=&r"(e)
                         : [m] "r"(mask)
                         : "memory");
    } while (x != end);
#else
    for (; groups > 0; groups--, w += 4, x += 4) {
        acc.a += (w[0] & 15) * x[0] + (w[1] & 15) * x[1] + (w[0] >> 4 & 15) * x[2] + (w[1] >> 4 & 15) * x[3];
        acc.b += (w[0] >> 8 & 15) * x[0] + (w[1] >> 8 & 15) * x[1] + (w[0] >> 12) * x[2] + (w[1] >> 12) * x[3];
        acc.c += (w[2] & 15) * x[0] + (w[3] & 15) * x[1] + (w[2] >> 4 & 15) * x[2] + (w[3] >> 4 & 15) * x[3];
        acc.d += (w[2] >> 8 & 15) * x[0] + (w[3] >> 8 & 15) * x[1] + (w[2] >> 12) * x[2] + (w[3] >> 12) * x[3];
    }
#endif
    return acc;
}

/* what the weights of four bits add too much, for all rows alike */
static int32_t eightfold(const int16_t *x, int cols)
{
    int32_t sum = 0;
    int i;
    for (i = 0; i < cols; i++) sum += x[i];
    return 8 * sum;
}
#endif

#if LIQUID_WIDE
/* the same with weights kept as int16: nothing to unpack, twice the flash */
LIQUID_INLINE liquid_four dot4_wide(liquid_four acc, const int16_t *w, const int16_t *x, int groups)
{
#if LIQUID_DSP
    const int16_t *end = x + 4 * groups;
    uint32_t x0, x1, w0, w1;
    do {
        __asm__ volatile("ldrd   %[x0], %[x1], [%[x]], #8\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "smlad  %[a], %[w0], %[x0], %[a]\n\t"
                         "smlad  %[b], %[w1], %[x0], %[b]\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "smlad  %[c], %[w0], %[x0], %[c]\n\t"
                         "smlad  %[d], %[w1], %[x0], %[d]\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "smlad  %[a], %[w0], %[x1], %[a]\n\t"
                         "smlad  %[b], %[w1], %[x1], %[b]\n\t"
                         "ldrd   %[w0], %[w1], [%[w]], #8\n\t"
                         "smlad  %[c], %[w0], %[x1], %[c]\n\t"
                         "smlad  %[d], %[w1], %[x1], %[d]"
                         : [a] "+r"(acc.a), [b] "+r"(acc.b), [c] "+r"(acc.c), [d] "+r"(acc.d), [w] "+r"(w), [x] "+r"(x),
                           [x0] "=&r"(x0), [x1] "=&r"(x1), [w0] "=&r"(w0), [w1] "=&r"(w1)
                         :
                         : "memory");
    } while (x != end);
#else
    for (; groups > 0; groups--, w += 16, x += 4) {
        acc.a += w[0] * x[0] + w[1] * x[1] + w[8] * x[2] + w[9] * x[3];
        acc.b += w[2] * x[0] + w[3] * x[1] + w[10] * x[2] + w[11] * x[3];
        acc.c += w[4] * x[0] + w[5] * x[1] + w[12] * x[2] + w[13] * x[3];
        acc.d += w[6] * x[0] + w[7] * x[1] + w[14] * x[2] + w[15] * x[3];
    }
#endif
    return acc;
}
#endif

#if LIQUID_CELL
/* linear interpolation in 256 intervals over the whole range of z; the table never falls */
LIQUID_INLINE uint32_t gate(int32_t z)
{
    const uint16_t *t = liquid_gate + 128 + (z >> 8);
    const uint32_t p = t[0], q = t[1];
    return p + (((q - p) * ((uint32_t)z & 255u) + 128u) >> 8);
}

#if LIQUID_WIDE
#define LIQUID_DOT dot4_wide
#else
#define LIQUID_DOT dot4
#endif

/* what one step reads: LIQUID_PATCH values, four rows of weights at a time */
LIQUID_INLINE liquid_four read4(liquid_four acc, const int16_t *w, const int16_t *diff)
{
    int j;
    for (j = 0; j < LIQUID_PATCH; j++, w += 4) {
        const int32_t x = diff[j];
        acc.a += w[0] * x;
        acc.b += w[1] * x;
        acc.c += w[2] * x;
        acc.d += w[3] * x;
    }
    return acc;
}

#if LIQUID_CELL != LIQUID_CFC
/* the next state of one unit */
LIQUID_INLINE int16_t advance(int32_t acc, const liquid_unit *unit, int32_t s)
{
    const uint32_t g = gate(sat16(rescale(acc, unit->mul)));
#if LIQUID_CELL == LIQUID_FUSED
    /* a weighted mean of s, A and 0, all shifted up by 2^15: the sum is never negative, though s may be */
    const uint32_t den = unit->leak + g;
    const uint32_t num = ((uint32_t)unit->leak << 15) + (uint32_t)(s * (int32_t)LIQUID_ONE) + g * unit->pull;
    return (int16_t)((int32_t)((num + (den >> 1)) / den) - 32768);
#else
    const int32_t pull = (int32_t)unit->pull - 32768;
    return (int16_t)sat16(s + (((int32_t)g * (pull - s) - (int32_t)unit->leak * s + 16384) >> 15));
#endif
}

static void cell_step(liquid_work *work, const int16_t *diff, const int16_t *now, int16_t *next)
{
    int i;
    (void)work;
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i += 4) {
        const liquid_unit *unit = liquid_units + i;
        liquid_four acc = {unit[0].bias, unit[1].bias, unit[2].bias, unit[3].bias};
        acc = read4(acc, liquid_cell_in + i * LIQUID_PATCH, diff);
        acc = LIQUID_DOT(acc, liquid_cell_w + i * LIQUID_UP4(LIQUID_UNITS), now, LIQUID_UP4(LIQUID_UNITS) / 4);
        next[i] = advance(acc.a, unit, now[i]);
        next[i + 1] = advance(acc.b, unit + 1, now[i + 1]);
        next[i + 2] = advance(acc.c, unit + 2, now[i + 2]);
        next[i + 3] = advance(acc.d, unit + 3, now[i + 3]);
    }
}
#else
LIQUID_INLINE int32_t at12(int32_t acc, const liquid_row *row) { return sat16(rescale(acc, row->mul)); }

/* from one target to the other, as far as the gate is open */
LIQUID_INLINE int16_t move(int32_t p, int32_t r, int32_t g)
{
#if LIQUID_GATED
    return (int16_t)(p + (((r - p) * g + 16384) >> 15));
#else
    return (int16_t)sat16((p + ((r * g + 16384) >> 15) + 1) >> 1);
#endif
}

LIQUID_INLINE liquid_four heads4(const liquid_work *work, int rows)
{
    const liquid_row *row = liquid_outer + rows;
    const liquid_four acc = {row[0].bias, row[1].bias, row[2].bias, row[3].bias};
    liquid_four y = LIQUID_DOT(acc, liquid_outer_w + rows * LIQUID_UP4(LIQUID_BACKBONE), work->inner, LIQUID_UP4(LIQUID_BACKBONE) / 4);
    y.a = at12(y.a, row);
    y.b = at12(y.b, row + 1);
    y.c = at12(y.c, row + 2);
    y.d = at12(y.d, row + 3);
    return y;
}

static void cell_step(liquid_work *work, const int16_t *diff, const int16_t *now, int16_t *next)
{
    int i;
    for (i = 0; i < LIQUID_UP4(LIQUID_BACKBONE); i += 4) {
        const liquid_row *row = liquid_inner + i;
        liquid_four acc = {row[0].bias, row[1].bias, row[2].bias, row[3].bias};
        acc = read4(acc, liquid_inner_in + i * LIQUID_PATCH, diff);
        acc = LIQUID_DOT(acc, liquid_inner_w + i * LIQUID_UP4(LIQUID_UNITS), now, LIQUID_UP4(LIQUID_UNITS) / 4);
        work->inner[i] = (int16_t)bend(at12(acc.a, row));
        work->inner[i + 1] = (int16_t)bend(at12(acc.b, row + 1));
        work->inner[i + 2] = (int16_t)bend(at12(acc.c, row + 2));
        work->inner[i + 3] = (int16_t)bend(at12(acc.d, row + 3));
    }
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i += 4) { /* four units: p, r and g of each */
        const liquid_four p = heads4(work, 3 * i), r = heads4(work, 3 * i + 4), g = heads4(work, 3 * i + 8);
        next[i] = move(bend(p.a), bend(r.a), (int32_t)gate(g.a));
        next[i + 1] = move(bend(p.b), bend(r.b), (int32_t)gate(g.b));
        next[i + 2] = move(bend(p.c), bend(r.c), (int32_t)gate(g.c));
        next[i + 3] = move(bend(p.d), bend(r.d), (int32_t)gate(g.d));
    }
}
#endif

void liquid_reset(liquid_work *work)
{
    int i;
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i++) work->state[0][i] = 0;
}

void liquid_step(liquid_work *work, const int16_t *diff)
{
    int i;
    cell_step(work, diff, work->state[0], work->state[1]);
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i++) work->state[0][i] = work->state[1][i];
}
#endif

#ifndef LIQUID_NET
LIQUID_INLINE liquid_four onto4(liquid_four y, liquid_four acc, const liquid_row *row)
{
    y.a += rescale(acc.a, row[0].mul);
    y.b += rescale(acc.b, row[1].mul);
    y.c += rescale(acc.c, row[2].mul);
    y.d += rescale(acc.d, row[3].mul);
    return y;
}

/* y += M x for every output, each matrix with its own scale, four rows at a time */
LIQUID_INLINE liquid_four dense4(liquid_four y, const int8_t *w, const liquid_row *row, const int16_t *x, int groups, int32_t less)
{
    const liquid_four acc = {row[0].bias, row[1].bias, row[2].bias, row[3].bias};
    (void)less;
    return onto4(y, dot4(acc, w, x, groups), row);
}

#if defined(LIQUID_HIDDEN4) || defined(LIQUID_HEAD4) || defined(LIQUID_SKIP4)
LIQUID_INLINE liquid_four dense4_small(liquid_four y, const uint16_t *w, const liquid_row *row, const int16_t *x, int groups, int32_t less)
{
    const liquid_four acc = {row[0].bias - less, row[1].bias - less, row[2].bias - less, row[3].bias - less};
    return onto4(y, dot4_small(acc, w, x, groups), row);
}
#endif

/* where the weights of a row begin, how they are read, and what is too much */
#ifdef LIQUID_HEAD4
#define LIQUID_HEAD(y, i, x, less) dense4_small(y, liquid_head_w + (i) / 4 * LIQUID_UP4(LIQUID_UNITS), liquid_head + (i), x, LIQUID_UP4(LIQUID_UNITS) / 4, less)
#define LIQUID_HEAD_LESS(x) eightfold(x, LIQUID_UP4(LIQUID_UNITS))
#else
#define LIQUID_HEAD(y, i, x, less) dense4(y, liquid_head_w + (i) * LIQUID_UP4(LIQUID_UNITS), liquid_head + (i), x, LIQUID_UP4(LIQUID_UNITS) / 4, less)
#define LIQUID_HEAD_LESS(x) 0
#endif
#ifdef LIQUID_SKIP4
#define LIQUID_PATH(y, i, x, less) dense4_small(y, liquid_skip_w + (i) / 4 * LIQUID_UP4(LIQUID_CTX), liquid_skip + (i), x, LIQUID_UP4(LIQUID_CTX) / 4, less)
#define LIQUID_PATH_LESS(x) eightfold(x, LIQUID_UP4(LIQUID_CTX))
#else
#define LIQUID_PATH(y, i, x, less) dense4(y, liquid_skip_w + (i) * LIQUID_UP4(LIQUID_CTX), liquid_skip + (i), x, LIQUID_UP4(LIQUID_CTX) / 4, less)
#define LIQUID_PATH_LESS(x) 0
#endif
#endif

#if defined(LIQUID_NET) || defined(LIQUID_LOOK_EPS)
LIQUID_SMALL uint32_t root(uint64_t x) /* floor of the square root, below 2^62 */
{
    uint64_t r = 0, bit = UINT64_C(1) << 60;
    while (bit > x) bit >>= 2;
    for (; bit != 0; bit >>= 2) {
        if (x >= r + bit) {
            x -= r + bit;
            r = (r >> 1) + bit;
        } else {
            r >>= 1;
        }
    }
    return (uint32_t)r;
}

/* 2^47 over the root of a sum of squares */
LIQUID_SMALL int32_t reciprocal(uint64_t squares)
{
    uint32_t deviation = root(squares);
    int shift = 0;
    if (deviation < 131072u) deviation = 131072u;
    while (deviation >> shift > 65535u) shift++;
    return (int32_t)((0xFFFFFFFFu / (deviation >> shift)) << (15 - shift));
}
#endif

#ifdef LIQUID_NET
LIQUID_INLINE int32_t activate(const liquid_layer *layer, int32_t y)
{
    return layer->bend != 0 ? bend(sat16(y)) : sat16(y < 0 ? 0 : y);
}

/* layer normalisation in place: distances from the mean over the root of their squares, then gain and bias */
LIQUID_SMALL void normalise(const liquid_layer *layer, int16_t *y)
{
    const int32_t n = layer->n, c = 512 / n;
    int32_t sum = 0, i, mul;
    uint64_t squares = layer->eps;
    for (i = 0; i < n; i++) sum += y[i];
    for (i = 0; i < n; i++) {
        const int32_t d = c * (n * y[i] - sum);
        squares += (uint64_t)((int64_t)d * d);
    }
    mul = reciprocal(squares);
    for (i = 0; i < n; i++) {
        const int32_t z = rescale(c * (n * y[i] - sum), mul);
        y[i] = (int16_t)activate(layer, ((z * layer->norm[i].gain + 16384) >> 15) + layer->norm[i].bias);
    }
}

/* four rows of a layer, from the i-th on */
LIQUID_ONCE void rows4(const liquid_layer *layer, int i, const int16_t *x, int32_t *y)
{
    const int16_t *b = layer->bias + i;
    const uint8_t *m = layer->mul + i;
    liquid_four acc = {b[0] * layer->step, b[1] * layer->step, b[2] * layer->step, b[3] * layer->step};
#ifdef LIQUID_HIDDEN4
    acc.a -= y[0]; /* what is too much, from the caller */
    acc.b -= y[0];
    acc.c -= y[0];
    acc.d -= y[0];
    acc = dot4_small(acc, layer->w + i / 4 * layer->cols, x, layer->cols / 4);
#else
    acc = dot4(acc, layer->w + i * layer->cols, x, layer->cols / 4);
#endif
    y[0] = rescale(acc.a, m[0] * layer->unit);
    y[1] = rescale(acc.b, m[1] * layer->unit);
    y[2] = rescale(acc.c, m[2] * layer->unit);
    y[3] = rescale(acc.d, m[3] * layer->unit);
}

LIQUID_SMALL void hidden(const liquid_layer *layer, const int16_t *x, int16_t *next)
{
    int i, j;
    int32_t y[4];
#ifdef LIQUID_HIDDEN4
    const int32_t less = eightfold(x, layer->cols);
#endif
    for (i = 0; i < layer->rows; i += 4) {
#ifdef LIQUID_HIDDEN4
        y[0] = less;
#endif
        rows4(layer, i, x, y);
        for (j = 0; j < 4; j++) next[i + j] = (int16_t)(layer->norm != 0 ? sat16(y[j]) : activate(layer, y[j]));
    }
    if (layer->norm != 0) normalise(layer, next);
}
#elif LIQUID_LAYERS
/* a hidden layer and its (leaky) rectifier */
static void hidden(const liquid_layer *layer, const int16_t *x, int16_t *next)
{
    int i;
#ifdef LIQUID_HIDDEN4
    const int32_t less = eightfold(x, layer->cols);
#endif
    for (i = 0; i < layer->rows; i += 4) {
        liquid_four y = {0, 0, 0, 0};
#ifdef LIQUID_HIDDEN4
        y = dense4_small(y, layer->w + i / 4 * layer->cols, layer->row + i, x, layer->cols / 4, less);
#else
        y = dense4(y, layer->w + i * layer->cols, layer->row + i, x, layer->cols / 4, 0);
#endif
        next[i] = rectify(y.a);
        next[i + 1] = rectify(y.b);
        next[i + 2] = rectify(y.c);
        next[i + 3] = rectify(y.d);
    }
}
#endif

#ifdef LIQUID_BLOCK
LIQUID_ONCE int16_t explicit_step(int32_t acc, const liquid_row *row, int32_t s, const liquid_pull *pull)
{
    const int32_t th = bend(sat16(rescale(acc, row->mul)));
    return (int16_t)sat16(s + ((pull->push * th - pull->decay * s + 16384) >> 15));
}

/* explicit steps of a small differential equation, in place; `other` is scratch */
LIQUID_SMALL void block(liquid_work *work, int16_t *s, int16_t *other)
{
    int16_t *now = s, *next = other, *swap, mean;
    int32_t sum = 0;
    int i, j, k;
    for (i = 0; i < LIQUID_CTX; i++) sum += work->diff[i];
    mean = (int16_t)sat16(rescale(sum * LIQUID_MEAN_W + (LIQUID_MEAN_BIAS), LIQUID_MEAN_MUL));
    for (i = 0; i < LIQUID_UP4(LIQUID_BLOCK); i++) {
        s[i] = (int16_t)((s[i] + LIQUID_BLOCK_HALF) >> LIQUID_BLOCK_SHIFT);
        work->start[i] = s[i];
    }
    for (k = 0; k < LIQUID_STEPS; k++) {
        for (i = 0; i < LIQUID_UP4(LIQUID_BLOCK); i += 4) {
            const liquid_row *row = liquid_block + i;
            const int16_t *w = liquid_block_in + i;
            liquid_four acc = {row[0].bias + w[0] * mean, row[1].bias + w[1] * mean, row[2].bias + w[2] * mean, row[3].bias + w[3] * mean};
            int32_t z[4];
            acc = dot4(acc, liquid_block_w + i * LIQUID_UP4(LIQUID_BLOCK), now, LIQUID_UP4(LIQUID_BLOCK) / 4);
            z[0] = acc.a;
            z[1] = acc.b;
            z[2] = acc.c;
            z[3] = acc.d;
            for (j = 0; j < 4; j++) next[i + j] = explicit_step(z[j], row + j, now[i + j], liquid_pulls + i + j);
        }
        swap = now;
        now = next;
        next = swap;
    }
    for (i = 0; i < LIQUID_UP4(LIQUID_BLOCK); i++) s[i] = (int16_t)sat16(now[i] + ((LIQUID_AGAIN * work->start[i] + 8192) >> 14));
}
#endif

LIQUID_INLINE int32_t reference(int16_t last)
{
#if LIQUID_REF_LAST
    return last;
#else
    (void)last;
    return 16384;
#endif
}

/* the context relative to its reference; `first` is where the oldest value lies in a ring */
LIQUID_SMALL void relate(liquid_work *work, const int16_t *ctx, int first, int32_t ref)
{
    int i;
    for (i = 0; i < LIQUID_CTX; i++) {
        const int32_t d = ctx[first] - ref;
        work->diff[i] = (int16_t)(d < -LIQUID_CLIP ? -LIQUID_CLIP : d > LIQUID_CLIP ? LIQUID_CLIP : d);
        if (++first == LIQUID_CTX) first = 0;
    }
    for (; i < LIQUID_UP4(LIQUID_IN); i++) work->diff[i] = 0;
}

#if LIQUID_UNITS
/* differences to features */
LIQUID_SMALL const int16_t *features(liquid_work *work)
{
#if LIQUID_CELL
    const int16_t *u;
    int16_t *now = work->state[0], *next = work->state[1], *swap;
    liquid_reset(work);
    for (u = work->diff; u < work->diff + LIQUID_CTX; u += LIQUID_PATCH) {
        cell_step(work, u, now, next);
        swap = now;
        now = next;
        next = swap;
    }
    return now;
#else
    const int16_t *x = work->diff;
    int i;
    for (i = 0; i < LIQUID_LAYERS; i++) {
        hidden(liquid_layers + i, x, work->state[i % 2]);
#ifdef LIQUID_BLOCK
        if (i + 1 == LIQUID_BLOCK_AT) block(work, work->state[i % 2], work->state[(i + 1) % 2]);
#endif
        x = work->state[i % 2];
    }
    return x;
#endif
}
#endif

#ifdef LIQUID_FITS
/* coefficients of all continuations, and where each of them ends */
static void continuations(liquid_work *work)
{
    const int32_t *a1 = work->coef + LIQUID_FITS, *a2 = a1 + LIQUID_SLOPES;
    int i;
    for (i = 0; i < LIQUID_UP4(LIQUID_ROWS); i += 4) {
        liquid_four y = {0, 0, 0, 0};
        y = dense4(y, liquid_fits_w + i * LIQUID_UP4(LIQUID_CTX), liquid_fits + i, work->diff, LIQUID_UP4(LIQUID_CTX) / 4, 0);
        work->coef[i] = y.a;
        work->coef[i + 1] = y.b;
        work->coef[i + 2] = y.c;
        work->coef[i + 3] = y.d;
    }
    for (i = 0; i < LIQUID_FITS; i++) {
        int32_t end = work->coef[i];
        if (i >= LIQUID_FITS - LIQUID_SLOPES) end += a1[i - (LIQUID_FITS - LIQUID_SLOPES)];
        if (i >= LIQUID_FITS - LIQUID_CURVES) end += a2[i - (LIQUID_FITS - LIQUID_CURVES)];
        work->diff[LIQUID_CTX + i] = (int16_t)sat16((end + (1 << (LIQUID_COEF_BITS - 15))) >> (LIQUID_COEF_BITS - 14));
    }
}

#ifdef LIQUID_LOOK_EPS
/* context and ends in units of the context's own deviation, at 2^-9 */
static void standardise(int16_t *x)
{
    const int32_t c = 512 / LIQUID_CTX;
    int32_t sum = 0, i, mul;
    uint64_t squares = LIQUID_LOOK_EPS;
    for (i = 0; i < LIQUID_CTX; i++) sum += x[i];
    for (i = 0; i < LIQUID_CTX; i++) {
        const int32_t d = c * (LIQUID_CTX * x[i] - sum);
        squares += (uint64_t)((int64_t)d * d);
    }
    mul = reciprocal(squares);
    for (i = 0; i < LIQUID_IN; i++) x[i] = (int16_t)sat16(rescale(rescale(c * (LIQUID_CTX * x[i] - sum), mul), LIQUID_LOOK_MUL));
}
#endif

/* e^-d in units of 2^-15, d >= 0 at 2^-10 */
LIQUID_INLINE uint32_t decay(uint32_t d)
{
    const uint32_t at = d > 8191u ? 8191u : d, p = liquid_exp[at >> 5];
    return p - (((p - liquid_exp[(at >> 5) + 1u]) * (at & 31u) + 16u) >> 5);
}

LIQUID_INLINE int32_t weighed(const uint32_t *share, const int32_t *a, int n)
{
    int64_t sum = 16384;
    int k;
    for (k = 0; k < n; k++) sum += (int64_t)(int32_t)share[k] * a[k];
    return (int32_t)(sum >> 15);
}

/* one step of the forecast, at 2^-13 relative to the reference */
static int32_t mixture(const liquid_work *work, int h)
{
    const int corner = liquid_at[h] >> 12;
    const int16_t *low = work->logit + corner * LIQUID_FITS, *high = corner + 1 < LIQUID_KNOTS ? low + LIQUID_FITS : low;
    const int32_t part = liquid_at[h] & 4095, theta = liquid_theta[h];
    const int32_t *a1 = work->coef + LIQUID_FITS, *a2 = a1 + LIQUID_SLOPES;
    int32_t logit[LIQUID_FITS], most = -262144, k;
    uint32_t share[LIQUID_FITS], sum = 0, one;
    int64_t y;
    for (k = 0; k < LIQUID_FITS; k++) {
        logit[k] = 8 * low[k] + (((high[k] - low[k]) * part + 256) >> 9);
        if (logit[k] > most) most = logit[k];
    }
    for (k = 0; k < LIQUID_FITS; k++) {
        share[k] = decay((uint32_t)(most - logit[k]));
        sum += share[k];
    }
    one = 0x80000000u / sum;
    for (k = 0; k < LIQUID_FITS; k++) share[k] = (share[k] * one + 32768u) >> 16;
    y = (int64_t)weighed(share, work->coef, LIQUID_FITS) * 32768;
    y += (int64_t)weighed(share + (LIQUID_FITS - LIQUID_SLOPES), a1, LIQUID_SLOPES) * theta;
    y += (int64_t)weighed(share + (LIQUID_FITS - LIQUID_CURVES), a2, LIQUID_CURVES) * ((theta * theta + 16384) >> 15);
    return (int32_t)((y + (1 << (LIQUID_COEF_BITS + 1))) >> (LIQUID_COEF_BITS + 2));
}

static void forecast(liquid_work *work, int32_t ref, int16_t *soh)
{
    const int32_t level = (ref + 1) >> 1;
    const int16_t *feature;
    int32_t less;
    int i;
    continuations(work);
#ifdef LIQUID_LOOK_EPS
    standardise(work->diff);
#endif
    feature = features(work);
    less = LIQUID_HEAD_LESS(feature);
    for (i = 0; i < LIQUID_UP4(LIQUID_FITS * LIQUID_KNOTS); i += 4) {
        liquid_four y = {0, 0, 0, 0};
        y = LIQUID_HEAD(y, i, feature, less);
        work->logit[i] = (int16_t)sat16(y.a);
        work->logit[i + 1] = (int16_t)sat16(y.b);
        work->logit[i + 2] = (int16_t)sat16(y.c);
        work->logit[i + 3] = (int16_t)sat16(y.d);
    }
    for (i = 0; i < LIQUID_HOR; i++) soh[i] = (int16_t)sat16(level + mixture(work, i));
}
#elif defined(LIQUID_NET)
LIQUID_SMALL void forecast(liquid_work *work, int32_t ref, int16_t *soh)
{
    const int32_t level = (ref + 1) >> 1;
    const int16_t *x = features(work);
    int32_t y[4];
    int i, j;
#ifdef LIQUID_HIDDEN4
    const int32_t less = eightfold(x, liquid_layers[LIQUID_LAYERS].cols);
#endif
    for (i = 0; i < LIQUID_HOR; i += 4) {
#ifdef LIQUID_HIDDEN4
        y[0] = less;
#endif
        rows4(liquid_layers + LIQUID_LAYERS, i, x, y);
        for (j = 0; j < 4 && i + j < LIQUID_HOR; j++) soh[i + j] = (int16_t)sat16(level + y[j]);
    }
}
#else
/* features and differences to the horizon */
LIQUID_INLINE void outputs(const int16_t *diff, const int16_t *feature, int32_t ref, int16_t *soh)
{
    const int32_t level = (ref + 1) >> 1;
    int i;
#if LIQUID_UNITS
    const int32_t less = LIQUID_HEAD_LESS(feature);
#endif
#ifdef LIQUID_SKIP
    const int32_t too = LIQUID_PATH_LESS(diff);
#endif
    (void)diff;
    (void)feature;
    for (i = 0; i < LIQUID_HOR; i += 4) {
        liquid_four y = {level, level, level, level};
#if LIQUID_UNITS
        y = LIQUID_HEAD(y, i, feature, less);
#endif
#ifdef LIQUID_SKIP
        y = LIQUID_PATH(y, i, diff, too);
#endif
        soh[i] = (int16_t)sat16(y.a);
        if (LIQUID_HOR % 4 == 0 || i + 1 < LIQUID_HOR) soh[i + 1] = (int16_t)sat16(y.b);
        if (LIQUID_HOR % 4 == 0 || i + 2 < LIQUID_HOR) soh[i + 2] = (int16_t)sat16(y.c);
        if (LIQUID_HOR % 4 == 0 || i + 3 < LIQUID_HOR) soh[i + 3] = (int16_t)sat16(y.d);
    }
}

static void forecast(liquid_work *work, int32_t ref, int16_t *soh)
{
#if LIQUID_UNITS
    outputs(work->diff, features(work), ref, soh);
#else
    outputs(work->diff, work->diff, ref, soh);
#endif
}
#endif

void liquid_forecast(liquid_work *work, const int16_t *ctx, int16_t *soh)
{
    const int32_t ref = reference(ctx[LIQUID_CTX - 1]);
    relate(work, ctx, 0, ref);
    forecast(work, ref, soh);
}

void liquid_forget(liquid_history *history)
{
    history->at = 0;
    history->held = 0;
}

void liquid_push(liquid_history *history, int16_t soh)
{
    history->ring[history->at] = soh;
    history->at = (uint16_t)(history->at + 1u < LIQUID_CTX ? history->at + 1u : 0u);
    if (history->held < LIQUID_CTX) history->held++;
}

int liquid_next(liquid_work *work, const liquid_history *history, int16_t *soh)
{
    int32_t ref;
    if (history->held < LIQUID_CTX) return 0;
    ref = reference(history->ring[history->at > 0 ? history->at - 1 : LIQUID_CTX - 1]);
    relate(work, history->ring, history->at, ref);
    forecast(work, ref, soh);
    return 1;
}

#if LIQUID_CELL && !defined(LIQUID_SKIP)
void liquid_now(const liquid_work *work, int16_t reference_soh, int16_t *soh)
{
    outputs(work->diff, work->state[0], reference_soh, soh);
}
#endif

uint16_t liquid_crossing(const int16_t *soh, int16_t level)
{
    int i = LIQUID_HOR;
    while (i > 0 && soh[i - 1] < level) i--;
    return (uint16_t)(i < LIQUID_HOR ? i + 1 : 0);
}

#ifdef LIQUID_HALF
/* e^(count times a constant) at 2^-12 */
static int32_t widened(int32_t count)
{
    const uint16_t *t = liquid_factor + ((count >> LIQUID_FACTOR_SHIFT) + LIQUID_FACTOR_MID);
    const int32_t p = t[0];
    return p + (((t[1] - p) * (count & ((1 << LIQUID_FACTOR_SHIFT) - 1)) + (1 << (LIQUID_FACTOR_SHIFT - 1))) >> LIQUID_FACTOR_SHIFT);
}

static int32_t within(int32_t count) { return count < -LIQUID_LIMIT ? -LIQUID_LIMIT : count > LIQUID_LIMIT ? LIQUID_LIMIT : count; }

void liquid_follow_forget(liquid_follow *follow, int16_t count)
{
    int i;
    for (i = 0; i < LIQUID_DUE; i++) follow->due[i] = 0;
    for (i = 0; i < LIQUID_OPEN; i++) follow->factor[i] = 0;
    follow->change = 0;
    follow->count = (int16_t)within(count);
    follow->since = 0;
    follow->open = 0;
}

void liquid_follow_see(liquid_follow *follow, int16_t soh)
{
    const int16_t *row = follow->due;
    int32_t age;
    if (follow->open == 0 || follow->since >= LIQUID_EVERY) return;
    for (age = 0; age < follow->open; age++) {
        const int32_t left = LIQUID_HOR - LIQUID_EVERY * age; /* so much of a forecast was open when it came to this row */
        if (follow->since < left) {
            const int32_t gap = soh - 2 * row[follow->since], off = gap < 0 ? -gap : gap;
            follow->change += off * 2048 > liquid_half[LIQUID_EVERY * age + follow->since] * (int32_t)follow->factor[age] ? LIQUID_MISS - 1 : -1;
        }
        row += left;
    }
    if (++follow->since == LIQUID_EVERY) {
        follow->count = (int16_t)within(follow->count + follow->change);
        follow->change = 0;
    }
}

void liquid_follow_keep(liquid_follow *follow, const int16_t *soh)
{
    int age, i;
    if (follow->open != 0 && follow->since < LIQUID_EVERY) return;
    for (age = LIQUID_OPEN - 1; age > 0; age--) { /* each row moves down by one, without what has been answered */
        const int left = LIQUID_HOR - LIQUID_EVERY * age;
        int16_t *row = follow->due + (LIQUID_HOR * age - LIQUID_EVERY * (age * (age - 1) / 2)); /* parentheses: no pointer beyond the end */
        for (i = 0; i < left; i++) row[i] = row[i - left];
        follow->factor[age] = follow->factor[age - 1];
    }
    for (i = 0; i < LIQUID_HOR; i++) follow->due[i] = soh[i];
    follow->factor[0] = (uint16_t)widened(follow->count);
    follow->since = 0;
    if (follow->open < LIQUID_OPEN) follow->open++;
}

int32_t liquid_follow_half(const liquid_follow *follow, int step)
{
    const int32_t half = (liquid_half[step] * widened(follow->count) + 2048) >> 12;
    return half > 32767 ? 32767 : half;
}
#endif
