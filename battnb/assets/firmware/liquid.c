/* liquid.c: the arithmetic. Fixed text; everything that belongs to one model is in model.h.
 * Weights of a matrix lie in blocks of four rows by four columns, columns in the order 0, 2, 1, 3. */
#include "liquid.h"

#if defined(__ARM_FEATURE_SIMD32) && !defined(LIQUID_PORTABLE)
#define LIQUID_DSP 1
#else
#define LIQUID_DSP 0
#endif

#if defined(__GNUC__)
#define LIQUID_INLINE static inline __attribute__((always_inline))
#else
#define LIQUID_INLINE static inline
#endif

/* the specification floors when it shifts; C99 leaves negative numbers to the compiler */
typedef char liquid_shift_must_floor[((-3) >> 1) == -2 ? 1 : -1];

typedef struct { int32_t bias, mul; } liquid_row; /* of a dense layer */
typedef struct { const int8_t *w; const liquid_row *row; int rows, cols; } liquid_layer; /* sizes in multiples of four */
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

#if LIQUID_LAYERS
LIQUID_INLINE int16_t rectify(int32_t a)
{
    const int32_t y = sat16(a);
    return (int16_t)(y < 0 ? (y * LIQUID_SLOPE + 16384) >> 15 : y);
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

static void cell_step(const int16_t *diff, const int16_t *now, int16_t *next)
{
    int i, j;
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i += 4) {
        const liquid_unit *unit = liquid_units + i;
        liquid_four acc = {unit[0].bias, unit[1].bias, unit[2].bias, unit[3].bias};
        for (j = 0; j < LIQUID_PATCH; j++) {
            const int16_t *w = liquid_cell_in + i * LIQUID_PATCH + 4 * j;
            const int32_t x = diff[j];
            acc.a += w[0] * x;
            acc.b += w[1] * x;
            acc.c += w[2] * x;
            acc.d += w[3] * x;
        }
#if LIQUID_WIDE
        acc = dot4_wide(acc, liquid_cell_w + i * LIQUID_UP4(LIQUID_UNITS), now, LIQUID_UP4(LIQUID_UNITS) / 4);
#else
        acc = dot4(acc, liquid_cell_w + i * LIQUID_UP4(LIQUID_UNITS), now, LIQUID_UP4(LIQUID_UNITS) / 4);
#endif
        next[i] = advance(acc.a, unit, now[i]);
        next[i + 1] = advance(acc.b, unit + 1, now[i + 1]);
        next[i + 2] = advance(acc.c, unit + 2, now[i + 2]);
        next[i + 3] = advance(acc.d, unit + 3, now[i + 3]);
    }
}

void liquid_reset(liquid_work *work)
{
    int i;
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i++) work->state[0][i] = 0;
}

void liquid_step(liquid_work *work, const int16_t *diff)
{
    int i;
    cell_step(diff, work->state[0], work->state[1]);
    for (i = 0; i < LIQUID_UP4(LIQUID_UNITS); i++) work->state[0][i] = work->state[1][i];
}
#endif

/* y += M x for every output, each matrix with its own scale, four rows at a time */
LIQUID_INLINE liquid_four dense4(liquid_four y, const int8_t *w, const liquid_row *row, const int16_t *x, int groups)
{
    liquid_four acc = {row[0].bias, row[1].bias, row[2].bias, row[3].bias};
    acc = dot4(acc, w, x, groups);
    y.a += rescale(acc.a, row[0].mul);
    y.b += rescale(acc.b, row[1].mul);
    y.c += rescale(acc.c, row[2].mul);
    y.d += rescale(acc.d, row[3].mul);
    return y;
}

#if LIQUID_LAYERS
/* a hidden layer and its (leaky) rectifier */
static void hidden(const liquid_layer *layer, const int16_t *x, int16_t *next)
{
    int i;
    for (i = 0; i < layer->rows; i += 4) {
        liquid_four y = {0, 0, 0, 0};
        y = dense4(y, layer->w + i * layer->cols, layer->row + i, x, layer->cols / 4);
        next[i] = rectify(y.a);
        next[i + 1] = rectify(y.b);
        next[i + 2] = rectify(y.c);
        next[i + 3] = rectify(y.d);
    }
}
#endif

static int32_t reference(const int16_t *ctx)
{
#if LIQUID_REF_LAST
    return ctx[LIQUID_CTX - 1];
#else
    (void)ctx;
    return 16384;
#endif
}

void liquid_forecast(liquid_work *work, const int16_t *ctx, int16_t *soh)
{
    const int32_t ref = reference(ctx), level = (ref + 1) >> 1;
#if LIQUID_UNITS
    const int16_t *feature;
#endif
    int i;
    for (i = 0; i < LIQUID_CTX; i++) {
        const int32_t d = ctx[i] - ref;
        work->diff[i] = (int16_t)(d < -LIQUID_CLIP ? -LIQUID_CLIP : d > LIQUID_CLIP ? LIQUID_CLIP : d);
    }
    for (; i < LIQUID_UP4(LIQUID_CTX); i++) work->diff[i] = 0;
#if LIQUID_CELL
    {
        const int16_t *u;
        int16_t *now = work->state[0], *next = work->state[1], *swap;
        liquid_reset(work);
        for (u = work->diff; u < work->diff + LIQUID_CTX; u += LIQUID_PATCH) {
            cell_step(u, now, next);
            swap = now;
            now = next;
            next = swap;
        }
        feature = now;
    }
#elif LIQUID_LAYERS
    feature = work->diff;
    for (i = 0; i < LIQUID_LAYERS; i++) {
        hidden(liquid_layers + i, feature, work->state[i % 2]);
        feature = work->state[i % 2];
    }
#endif
    for (i = 0; i < LIQUID_HOR; i += 4) {
        liquid_four y = {level, level, level, level};
#if LIQUID_UNITS
        y = dense4(y, liquid_head_w + i * LIQUID_UP4(LIQUID_UNITS), liquid_head + i, feature, LIQUID_UP4(LIQUID_UNITS) / 4);
#endif
#ifdef LIQUID_SKIP
        y = dense4(y, liquid_skip_w + i * LIQUID_UP4(LIQUID_CTX), liquid_skip + i, work->diff, LIQUID_UP4(LIQUID_CTX) / 4);
#endif
        soh[i] = (int16_t)sat16(y.a);
        if (LIQUID_HOR % 4 == 0 || i + 1 < LIQUID_HOR) soh[i + 1] = (int16_t)sat16(y.b);
        if (LIQUID_HOR % 4 == 0 || i + 2 < LIQUID_HOR) soh[i + 2] = (int16_t)sat16(y.c);
        if (LIQUID_HOR % 4 == 0 || i + 3 < LIQUID_HOR) soh[i + 3] = (int16_t)sat16(y.d);
    }
}

uint16_t liquid_crossing(const int16_t *soh, int16_t level)
{
    int i = LIQUID_HOR;
    while (i > 0 && soh[i - 1] < level) i--;
    return (uint16_t)(i < LIQUID_HOR ? i + 1 : 0);
}
