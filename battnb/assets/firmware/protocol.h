/* protocol.h: one line of text a cycle in, a forecast out. No floating point, no dynamic memory, no operating system. */
#ifndef LIQUID_PROTOCOL_H
#define LIQUID_PROTOCOL_H

#include "liquid.h"
#include "storage.h"

#define FADE_LINE 32 /* longest line, its end included */

typedef enum { FADE_WAIT, FADE_STORED, FADE_FORECAST, FADE_NOMINAL, FADE_RESET, FADE_TEST, FADE_HELP, FADE_BAD } fade_event;

typedef struct {
    liquid_work work;
    liquid_history history;  /* SOH of the last cycles */
    int16_t soh[LIQUID_HOR]; /* the forecast, at 2^-13 */
    uint32_t nominal_uah;    /* 0: lines are SOH; otherwise they are Ah */
#ifdef LIQUID_HALF
    liquid_follow follow;    /* how wide the interval must be for this cell */
#endif
    fade_log log;            /* where history and nominal capacity are kept */
    char line[FADE_LINE];
    uint8_t length;          /* FADE_LINE: the line was too long */
} fade_t;

/* forget the values held, and what they have taught */
static void fade_forget(fade_t *f)
{
    liquid_forget(&f->history);
#ifdef LIQUID_HALF
    liquid_follow_forget(&f->follow, 0);
#endif
}

/* begin the other page with all that counts; its header comes last */
static int fade_turn(fade_t *f)
{
    fade_log *log = &f->log;
    const uint32_t page = log->page == 0u ? log->flash->page : 0u, generation = log->generation + 1u;
    uint32_t slot = 1, i, at = f->history.held == LIQUID_CTX ? f->history.at : 0u;
    int failed = log->flash->erase(log->flash->device, page);
    if (f->nominal_uah != 0u) failed |= fade_write(log, page, slot++, generation, FADE_UNIT, f->nominal_uah);
#ifdef LIQUID_HALF
    failed |= fade_write(log, page, slot++, generation, FADE_BAND, (uint16_t)f->follow.count);
#endif
    for (i = 0; i < f->history.held; i++) {
        failed |= fade_write(log, page, slot++, generation, FADE_SOH, (uint16_t)f->history.ring[at]);
        at = at + 1u < LIQUID_CTX ? at + 1u : 0u;
    }
    if (failed == 0) failed = fade_write(log, page, 0, generation, FADE_HEADER, generation);
    if (failed != 0) {
        log->lost++;
        return 1;
    }
    log->page = page;
    log->generation = generation;
    log->slot = slot;
    return 0;
}

/* keep a change that has been made in memory */
static void fade_keep(fade_t *f, uint32_t kind, uint32_t value)
{
    if (fade_append(&f->log, kind, value) == 1) (void)fade_turn(f);
}

/* begin with what the flash holds; pass 0 to keep nothing. Two pages must each hold LIQUID_CTX + 4 records of 12 bytes. */
static void fade_begin(fade_t *f, const fade_flash *flash)
{
    fade_record r;
    uint32_t slot;
    fade_forget(f);
    f->nominal_uah = 0;
    f->length = 0;
    if (fade_open(&f->log, flash) == 0) return;
    for (slot = 1; slot < f->log.slot; slot++) {
        if (fade_read(&f->log, f->log.page, slot, f->log.generation, &r) != 1) continue; /* a power cut left this one unfinished */
        if (r.kind == FADE_SOH) liquid_push(&f->history, (int16_t)r.value);
        if (r.kind == FADE_CLEAR || r.kind == FADE_UNIT) fade_forget(f);
        if (r.kind == FADE_UNIT) f->nominal_uah = r.value;
#ifdef LIQUID_HALF
        if (r.kind == FADE_BAND) liquid_follow_forget(&f->follow, (int16_t)(uint16_t)r.value); /* forecasts under test are lost, what they taught is not */
#endif
    }
}

/* "1.25" -> 1250000; digits beyond the sixth decimal are dropped; 0 on success */
static int fade_micro(const char *text, uint32_t *micro)
{
    uint32_t whole = 0, part = 0, unit = 1000000u, digits = 0;
    for (; *text >= '0' && *text <= '9'; text++, digits++) {
        whole = whole * 10u + (uint32_t)(*text - '0');
        if (whole > 4000u) return 1;
    }
    if (*text == '.') {
        for (text++; *text >= '0' && *text <= '9'; text++, digits++) {
            unit /= 10u;
            part += unit * (uint32_t)(*text - '0');
        }
    }
    *micro = whole * 1000000u + part;
    return *text != 0 || digits == 0;
}

/* append one cycle; FADE_BAD unless 0 < SOH < 2 */
static fade_event fade_push(fade_t *f, uint32_t micro)
{
    const uint32_t one = f->nominal_uah != 0 ? f->nominal_uah : 1000000u;
    const uint64_t soh = (((uint64_t)micro << 14) + one / 2u) / one;
    if (soh == 0 || soh > 32767u) return FADE_BAD;
    liquid_push(&f->history, (int16_t)soh);
    fade_keep(f, FADE_SOH, (uint32_t)soh);
#ifdef LIQUID_HALF
    liquid_follow_see(&f->follow, (int16_t)soh);
#endif
    if (liquid_next(&f->work, &f->history, f->soh) == 0) return FADE_STORED;
#ifdef LIQUID_HALF
    {
        const int due = f->follow.open == 0 || f->follow.since >= LIQUID_EVERY;
        liquid_follow_keep(&f->follow, f->soh);
        if (due) fade_keep(f, FADE_BAND, (uint16_t)f->follow.count);
    }
#endif
    return FADE_FORECAST;
}

/* does text begin with word? then what follows it, else 0 */
static const char *fade_after(const char *text, const char *word)
{
    while (*word != 0) {
        if (*text++ != *word++) return 0;
    }
    return text;
}

static fade_event fade_line(fade_t *f, const char *line)
{
    const char *rest;
    uint32_t micro = 0;
    if (*line == 0) return FADE_WAIT;
    if (line[0] == '?' && line[1] == 0) return FADE_HELP;
    if ((rest = fade_after(line, "reset")) != 0 && *rest == 0) {
        fade_forget(f);
        fade_keep(f, FADE_CLEAR, 0);
        return FADE_RESET;
    }
    if ((rest = fade_after(line, "test")) != 0 && *rest == 0) return FADE_TEST;
    if ((rest = fade_after(line, "nominal ")) != 0) {
        if (fade_micro(rest, &micro) != 0) return FADE_BAD;
        f->nominal_uah = micro;
        fade_forget(f); /* what was stored had another unit */
        fade_keep(f, FADE_UNIT, micro);
        return FADE_NOMINAL;
    }
    return fade_micro(line, &micro) != 0 ? FADE_BAD : fade_push(f, micro);
}

/* feed one character; anything but FADE_WAIT wants an answer. Blanks before and after mean nothing. */
static fade_event fade_feed(fade_t *f, char c)
{
    fade_event event = FADE_WAIT;
    const int blank = c == ' ' || c == '\t';
    if (c == '\r' || (blank && f->length == 0)) return event;
    if (c == '\n') {
        while (f->length > 0 && f->length < FADE_LINE && (f->line[f->length - 1] == ' ' || f->line[f->length - 1] == '\t')) f->length--;
        if (f->length >= FADE_LINE) {
            event = FADE_BAD;
        } else {
            f->line[f->length] = 0;
            event = fade_line(f, f->line);
        }
        f->length = 0;
    } else if (c != 0 && f->length < FADE_LINE - 1) {
        f->line[f->length++] = c;
    } else {
        f->length = FADE_LINE;
    }
    return event;
}

/* 2^-13 -> "0.9876", rounded; text holds 10 characters */
static void fade_text(int32_t soh, char *text)
{
    uint32_t n = (uint32_t)(soh < 0 ? -soh : soh) * 10000u, div = 1000u;
    n = (n + 4096u) >> 13;
    if (soh < 0) *text++ = '-';
    *text++ = (char)('0' + n / 10000u);
    *text++ = '.';
    for (n %= 10000u; div > 0u; div /= 10u) *text++ = (char)('0' + n / div % 10u);
    *text = 0;
}
#endif
