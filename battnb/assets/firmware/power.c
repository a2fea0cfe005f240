/* power.c: cut the power at every single byte that is programmed or erased, restart, and compare what came back.
   Prints: cuts, turns of a page, histories that are neither the one before nor the one after the interrupted line. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "protocol.h"

#define PAGE ((LIQUID_CTX + 11) * 12) /* small, so that pages turn often */

static uint8_t cells[2 * PAGE];
static jmp_buf off;
static long budget, spent, turns;
static uint32_t noise = 1;

static void byte_done(uint8_t *cell, uint8_t value)
{
    if (budget >= 0 && spent >= budget) {
        noise = noise * 1664525u + 1013904223u;
        *cell = (uint8_t)(*cell & (value | (uint8_t)(noise >> 24))); /* a cell caught between two states */
        longjmp(off, 1);
    }
    spent++;
    *cell = value;
}
static int ram_read(void *d, uint32_t at, void *to, uint32_t n) { (void)d; memcpy(to, cells + at, n); return 0; }
static int ram_program(void *d, uint32_t at, const void *from, uint32_t n)
{
    uint32_t i;
    (void)d;
    for (i = 0; i < n; i++) byte_done(cells + at + i, (uint8_t)(cells[at + i] & ((const uint8_t *)from)[i]));
    return 0;
}
static int ram_erase(void *d, uint32_t at)
{
    uint32_t i;
    (void)d;
    turns++;
    for (i = 0; i < PAGE; i++) byte_done(cells + at + i, 0xFF);
    return 0;
}
static const fade_flash flash = {0, PAGE, ram_read, ram_program, ram_erase};

/* what a fade_t means: nominal, then the values held, oldest first */
static uint32_t state(const fade_t *f, uint32_t *out)
{
    uint32_t i, n = 0, at = f->history.held == LIQUID_CTX ? f->history.at : 0u;
    out[n++] = f->nominal_uah;
    for (i = 0; i < f->history.held; i++) {
        out[n++] = (uint32_t)(uint16_t)f->history.ring[at];
        at = at + 1u < LIQUID_CTX ? at + 1u : 0u;
    }
    return n;
}

static fade_t f, again;
static uint32_t before[LIQUID_CTX + 1], after[LIQUID_CTX + 1], back[LIQUID_CTX + 1];
static volatile uint32_t n_before;

/* what the past of the cell has made of its interval */
#ifdef LIQUID_HALF
static int taught(const fade_t *g) { return g->follow.count; }
#else
static int taught(const fade_t *g) { (void)g; return 0; }
#endif
static volatile int taught_before;

static void line(int i) /* the i-th line of the session */
{
    char text[24], *c;
    if (i % 151 == 150) snprintf(text, sizeof text, "reset");
    else if (i % 211 == 7) snprintf(text, sizeof text, "nominal %d.%03d", 1 + i % 5, i % 1000);
    else snprintf(text, sizeof text, "%d.%04d", f.nominal_uah > 2000000u ? 2 : 0, 8000 + i * 7 % 1900);
    for (c = text; *c != 0; c++) (void)fade_feed(&f, *c);
    (void)fade_feed(&f, '\n');
}

int main(int argc, char **argv)
{
    const int lines = argc > 1 ? atoi(argv[1]) : 400, stride = argc > 2 ? atoi(argv[2]) : 1;
    long all;
    volatile long cut, cuts = 0, wrong = 0;
    volatile int i;
    (void)fade_text;
    memset(cells, 0xFF, sizeof cells);
    budget = -1;
    fade_begin(&f, &flash);
    for (i = 0; i < lines; i++) line(i);
    all = spent;
    for (cut = 0; cut < all; cut = cut + stride, cuts = cuts + 1) {
        memset(cells, 0xFF, sizeof cells);
        spent = 0;
        budget = cut;
        if (setjmp(off) == 0) {
            fade_begin(&f, &flash);
            for (i = 0; i < lines; i++) {
                n_before = state(&f, before);
                taught_before = taught(&f);
                line(i);
            }
        } else {
            const uint32_t n_after = state(&f, after); /* memory at the moment of the cut holds the new line already */
            const int taught_after = taught(&f);
            uint32_t n;
            int ok;
            budget = -1;
            fade_begin(&again, &flash);
            n = state(&again, back);
            ok = (n == n_before && memcmp(back, before, n * sizeof *back) == 0) || (n == n_after && memcmp(back, after, n * sizeof *back) == 0);
            ok = ok && (taught(&again) == taught_before || taught(&again) == taught_after);
            if (ok) { /* and it must go on from there */
                (void)fade_line(&again, "0.9");
                (void)fade_line(&again, "0.91");
                n = state(&again, back);
                fade_begin(&f, &flash);
                ok = state(&f, after) == n && memcmp(back, after, n * sizeof *back) == 0 && taught(&f) == taught(&again);
            }
            wrong = wrong + !ok;
        }
    }
    printf("cuts %ld\nbytes %ld\nturns %ld\nwrong %ld\n", cuts, all, turns, wrong);
    return wrong != 0;
}
