/* liquid.h: forecast battery fade in integers. C99; no malloc, no libm, no floating point, no global state.
 *
 * Units: SOH in is int16 at 2^-14 (1.0 is 16384), SOH out is int16 at 2^-13 (1.0 is 8192).
 * Sizes are in model.h. The caller owns all memory; nothing is kept between calls but what is in liquid_work. */
#ifndef LIQUID_H
#define LIQUID_H

#include <stdint.h>
#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LIQUID_ALIGN4 __attribute__((aligned(4)))
#else
#define LIQUID_ALIGN4
#endif
#define LIQUID_UP4(n) (((n) + 3) / 4 * 4)

/* scratch memory of one forecaster; its content needs no initialisation */
typedef struct {
    LIQUID_ALIGN4 int16_t diff[LIQUID_UP4(LIQUID_IN)];         /* the context, relative to its reference; ends of continuations */
#if LIQUID_UNITS
    LIQUID_ALIGN4 int16_t state[2][LIQUID_UP4(LIQUID_WIDEST)]; /* state or hidden layer: now and next, in turn */
#endif
#ifdef LIQUID_BACKBONE
    LIQUID_ALIGN4 int16_t inner[LIQUID_UP4(LIQUID_BACKBONE)];  /* hidden layer of closed-form units */
#endif
#ifdef LIQUID_BLOCK
    LIQUID_ALIGN4 int16_t start[LIQUID_UP4(LIQUID_BLOCK)];     /* where the explicit steps began */
#endif
#ifdef LIQUID_FITS
    int32_t coef[LIQUID_UP4(LIQUID_ROWS)];                     /* coefficients of the continuations */
    int16_t logit[LIQUID_UP4(LIQUID_FITS * LIQUID_KNOTS)];             /* what the network says of each, corner by corner */
#endif
} liquid_work;

/* the last LIQUID_CTX values of a cell, one at a time, in constant memory */
typedef struct {
    int16_t ring[LIQUID_CTX]; /* SOH at 2^-14 */
    uint16_t at, held;        /* where the next value goes; how many are held */
} liquid_history;

/* the last LIQUID_CTX values of SOH, oldest first -> the next LIQUID_HOR values */
void liquid_forecast(liquid_work *work, const int16_t *ctx, int16_t *soh);

/* streaming: one cycle at a time. liquid_next answers as liquid_forecast would for the values held; 0 while they are too few */
void liquid_forget(liquid_history *history);
void liquid_push(liquid_history *history, int16_t soh);
int liquid_next(liquid_work *work, const liquid_history *history, int16_t *soh);

#if LIQUID_CELL
/* recurrent students in pieces: diff holds LIQUID_PATCH values relative to a reference that the caller keeps */
void liquid_reset(liquid_work *work);
void liquid_step(liquid_work *work, const int16_t *diff);
#ifndef LIQUID_SKIP
void liquid_now(const liquid_work *work, int16_t reference, int16_t *soh); /* the forecast from the state as it is now */
#endif
#endif

/* first step (1 = the next cycle) from which the forecast stays below a level at 2^-13; 0 if it never does */
uint16_t liquid_crossing(const int16_t *soh, int16_t level);

#ifdef LIQUID_HALF
/* half-width of the prediction interval at each step, at 2^-13 */
extern const int16_t liquid_half[LIQUID_HOR];

/* an interval that follows one cell: how often its points lay outside the intervals that were issued so far */
typedef struct {
    int16_t due[LIQUID_DUE];      /* forecasts as far as they are unanswered, newest first */
    uint16_t factor[LIQUID_OPEN]; /* on the half-widths, as each was issued, at 2^-12 */
    int32_t change;               /* to the count, when the next forecast is due */
    int16_t count;                /* the only thing worth keeping over a restart */
    uint16_t since, open;         /* cycles since the newest of them; how many there are */
} liquid_follow;

void liquid_follow_forget(liquid_follow *follow, int16_t count);        /* begin, with a count that was kept, or 0 */
void liquid_follow_see(liquid_follow *follow, int16_t soh);             /* every cycle: what was measured, at 2^-14 */
void liquid_follow_keep(liquid_follow *follow, const int16_t *soh);     /* every forecast: kept where one is due, else ignored */
int32_t liquid_follow_half(const liquid_follow *follow, int step);      /* half-width at a step as it is now, at 2^-13 */
#endif

#ifdef __cplusplus
}
#endif
#endif
