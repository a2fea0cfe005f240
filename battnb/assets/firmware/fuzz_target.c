/* fuzz_target.c: what must hold after any input whatever. Compiled with coverage; fuzz.c drives it. */
#include <stdlib.h>
#include <string.h>
#include "protocol.h"

void fuzz_one(const uint8_t *data, size_t n);
uint64_t fuzz_forecasts;

#define PAGE ((LIQUID_CTX + 11) * 12)
static uint8_t cells[2 * PAGE];
static int ram_read(void *d, uint32_t at, void *to, uint32_t n) { (void)d; if (at + n > sizeof cells) abort(); memcpy(to, cells + at, n); return 0; }
static int ram_program(void *d, uint32_t at, const void *from, uint32_t n)
{
    uint32_t i;
    (void)d;
    if (at + n > sizeof cells || at % 4u != 0u || n % 4u != 0u) abort();
    for (i = 0; i < n; i++) {
        if (cells[at + i] != 0xFF) abort(); /* never program a byte twice */
        cells[at + i] = ((const uint8_t *)from)[i];
    }
    return 0;
}
static int ram_erase(void *d, uint32_t at) { (void)d; if (at % PAGE != 0u) abort(); memset(cells + at, 0xFF, PAGE); return 0; }
static const fade_flash flash = {0, PAGE, ram_read, ram_program, ram_erase};

static void must(int holds) { if (!holds) abort(); }

/* the first byte says how the flash begins; the rest comes over the serial line */
void fuzz_one(const uint8_t *data, size_t n)
{
    static fade_t f, back;
    static liquid_work work;
    static int16_t ctx[LIQUID_CTX], soh[LIQUID_HOR];
    size_t i;
    int k;
    memset(cells, 0xFF, sizeof cells);
    if (n > 1 && data[0] == 'F') { /* begin with a flash full of whatever the input holds */
        for (i = 0; i < sizeof cells; i++) cells[i] = data[1 + i % (n - 1)];
    } else if (n > 1 && data[0] == 'H') { /* a true header, then whatever */
        const uint32_t head[3] = {FADE_HEADER, 7, fade_check(FADE_HEADER, 7, 7, 0)};
        for (i = 0; i < sizeof cells; i++) cells[i] = i % 40u < 20u ? 0xFF : data[1 + i % (n - 1)];
        memcpy(cells, head, sizeof head);
        memset(cells + sizeof head, 0xFF, PAGE - sizeof head);
    }
    fade_begin(&f, &flash);
    must(f.history.held <= LIQUID_CTX && f.history.at < LIQUID_CTX);
    for (i = 1; i < n; i++) {
        const uint16_t held = f.history.held, at = f.history.at;
        const uint32_t nominal = f.nominal_uah;
        const fade_event e = fade_feed(&f, (char)data[i]);
        must(f.history.held <= LIQUID_CTX && f.history.at < LIQUID_CTX && f.length <= FADE_LINE);
        if (e == FADE_BAD || e == FADE_WAIT || e == FADE_HELP || e == FADE_TEST) must(held == f.history.held && at == f.history.at && nominal == f.nominal_uah);
        if (e == FADE_FORECAST) { /* streaming equals the batch */
            fuzz_forecasts++;
            for (k = 0; k < LIQUID_CTX; k++) ctx[k] = f.history.ring[(f.history.at + k) % LIQUID_CTX];
            liquid_forecast(&work, ctx, soh);
            must(memcmp(soh, f.soh, sizeof soh) == 0);
            for (k = 0; k < LIQUID_HOR; k++) {
                char text[10];
#ifdef LIQUID_HALF
                must(liquid_follow_half(&f.follow, k) >= 0 && liquid_follow_half(&f.follow, k) <= 32767);
                fade_text(f.soh[k] - liquid_follow_half(&f.follow, k), text);
                must(strlen(text) >= 6 && strlen(text) <= 7);
#endif
                fade_text(f.soh[k], text);
                must(strlen(text) >= 6 && strlen(text) <= 7);
            }
        }
    }
    must(f.log.lost == 0);
    fade_begin(&back, &flash); /* what was kept is what is in memory */
    must(back.history.held == f.history.held && back.nominal_uah == f.nominal_uah);
#ifdef LIQUID_HALF
    must(back.follow.count == f.follow.count && f.follow.count >= -LIQUID_LIMIT && f.follow.count <= LIQUID_LIMIT);
#endif
    for (k = 0; k < f.history.held; k++) {
        const int a = f.history.held == LIQUID_CTX ? f.history.at : 0, b = back.history.held == LIQUID_CTX ? back.history.at : 0;
        must(f.history.ring[(a + k) % LIQUID_CTX] == back.history.ring[(b + k) % LIQUID_CTX]);
    }
}
