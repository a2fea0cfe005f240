/* storage.h: what must survive a restart, as a log in two pages of flash. No dynamic memory, no operating system.
 *
 * A record is three words: kind, value, checksum. Records are only appended; when a page is full, what counts is copied
 * to the other page, whose header is written last. So a power cut at any byte loses at most the record being written. */
#ifndef LIQUID_STORAGE_H
#define LIQUID_STORAGE_H

#include <stdint.h>

typedef struct {
    void *device;
    uint32_t page; /* bytes of one erasable page; two pages are used, at 0 and at `page` */
    int (*read)(void *device, uint32_t at, void *to, uint32_t bytes);            /* 0 on success, all three */
    int (*program)(void *device, uint32_t at, const void *from, uint32_t bytes); /* clears bits, 4-byte words */
    int (*erase)(void *device, uint32_t at);                                     /* one page to 0xFF */
} fade_flash;

typedef struct { uint32_t kind, value, check; } fade_record;

enum { FADE_HEADER = 0x4C4F4731, FADE_SOH = 0x31484F53, FADE_UNIT = 0x544E5531, FADE_CLEAR = 0x21524C43, FADE_BAND = 0x444E4231 }; /* no byte is 0xFF */

typedef struct {
    const fade_flash *flash; /* 0: nothing is kept */
    uint32_t generation;     /* counts how often a page was begun */
    uint32_t slot, slots;    /* the next free record, and how many a page has */
    uint32_t page;           /* where the page in use begins */
    uint32_t lost;           /* records that could not be written */
} fade_log;

static uint32_t fade_check(uint32_t kind, uint32_t value, uint32_t generation, uint32_t slot)
{
    const uint32_t words[4] = {kind, value, generation, slot};
    uint32_t crc = 0xFFFFFFFFu, i, bit;
    for (i = 0; i < 4; i++) {
        crc ^= words[i];
        for (bit = 0; bit < 32; bit++) crc = (crc >> 1) ^ ((crc & 1u) != 0u ? 0xEDB88320u : 0u);
    }
    return crc;
}

/* 1: a record; 0: still empty; -1: damaged */
static int fade_read(const fade_log *log, uint32_t page, uint32_t slot, uint32_t generation, fade_record *r)
{
    const uint32_t size = (uint32_t)sizeof *r;
    if (log->flash->read(log->flash->device, page + slot * size, r, size) != 0) return -1;
    if (r->kind == 0xFFFFFFFFu && r->value == 0xFFFFFFFFu && r->check == 0xFFFFFFFFu) return 0;
    return r->check == fade_check(r->kind, r->value, slot == 0u ? r->value : generation, slot) ? 1 : -1;
}

static int fade_write(const fade_log *log, uint32_t page, uint32_t slot, uint32_t generation, uint32_t kind, uint32_t value)
{
    const uint32_t size = (uint32_t)sizeof(fade_record);
    fade_record r;
    r.kind = kind;
    r.value = value;
    r.check = fade_check(kind, value, generation, slot);
    return log->flash->program(log->flash->device, page + slot * size, &r, size);
}

/* find the newer page; 0 if there is none, and then the first append begins one */
static int fade_open(fade_log *log, const fade_flash *flash)
{
    fade_record r;
    uint32_t i, found = 0;
    log->flash = flash;
    log->generation = 0;
    log->slot = log->slots = flash != 0 ? flash->page / (uint32_t)sizeof r : 0u;
    log->page = flash != 0 ? flash->page : 0u; /* so that the first page begun is the one at 0 */
    log->lost = 0;
    for (i = 0; flash != 0 && i < 2u; i++) {
        const uint32_t page = i * flash->page;
        if (fade_read(log, page, 0, 0, &r) != 1 || r.kind != FADE_HEADER) continue;
        if (found == 0u || (int32_t)(r.value - log->generation) > 0) {
            log->generation = r.value;
            log->page = page;
            found = 1;
        }
    }
    if (found != 0u) {
        for (log->slot = 1; log->slot < log->slots && fade_read(log, log->page, log->slot, log->generation, &r) != 0; log->slot++) { }
    }
    return (int)found;
}

/* append one record; 0 if it is written, 1 if the page is full, 2 if the flash refuses */
static int fade_append(fade_log *log, uint32_t kind, uint32_t value)
{
    if (log->flash == 0) return 0;
    if (log->slot >= log->slots) return 1;
    if (fade_write(log, log->page, log->slot++, log->generation, kind, value) == 0) return 0;
    log->lost++;
    return 2;
}
#endif
