/* board.c: the smallest program around the forecaster. With BOARD_SEMIHOSTING it reads contexts from the host's
   file in.bin, writes forecasts to out.bin and prints how many instructions one forecast took; with BOARD_FOLLOW as well
   it reads a record and writes forecast and half-widths after every cycle. */
#include "liquid.h"

extern liquid_work board_work;
extern int16_t board_ctx[LIQUID_CTX], board_soh[LIQUID_HOR];
liquid_work board_work;
int16_t board_ctx[LIQUID_CTX], board_soh[LIQUID_HOR];
int main(void);
void board_done(int status);

#ifdef BOARD_FOLLOW
/* one value a cycle, an interval that follows the cell: board_ctx[0] in, board_soh and board_half out */
extern liquid_history board_history;
extern liquid_follow board_follow;
extern int16_t board_half[LIQUID_HOR];
liquid_history board_history;
liquid_follow board_follow;
int16_t board_half[LIQUID_HOR];
__attribute__((noinline)) void board_cycle(void);
__attribute__((noinline)) void board_band(void);

void board_band(void) /* what the interval adds to a cycle */
{
    int i;
    liquid_follow_see(&board_follow, board_ctx[0]);
    liquid_follow_keep(&board_follow, board_soh);
    for (i = 0; i < LIQUID_HOR; i++) board_half[i] = (int16_t)liquid_follow_half(&board_follow, i);
}

void board_cycle(void)
{
    int i;
    liquid_push(&board_history, board_ctx[0]);
    liquid_follow_see(&board_follow, board_ctx[0]);
    if (liquid_next(&board_work, &board_history, board_soh) == 0) return;
    liquid_follow_keep(&board_follow, board_soh);
    for (i = 0; i < LIQUID_HOR; i++) board_half[i] = (int16_t)liquid_follow_half(&board_follow, i);
}
#endif

#ifndef BOARD_SEMIHOSTING
void board_done(int status)
{
    (void)status;
    for (;;) __asm__ volatile("nop");
}

int main(void)
{
#ifdef BOARD_FOLLOW
    liquid_forget(&board_history);
    liquid_follow_forget(&board_follow, 0);
    board_cycle();
    board_band();
    liquid_follow_forget(&board_follow, 0);
    liquid_forget(&board_history);
#endif
    liquid_forecast(&board_work, board_ctx, board_soh);
    return 0;
}
#else
#define TIMER_CTRL (*(volatile uint32_t *)0x40000000u)   /* 25 MHz, counts down */
#define TIMER_VALUE (*(volatile uint32_t *)0x40000004u)
#define TIMER_RELOAD (*(volatile uint32_t *)0x40000008u)

typedef void (*forecaster)(liquid_work *, const int16_t *, int16_t *);

static int32_t host(int32_t call, const void *arg)
{
    register int32_t r0 __asm__("r0") = call;
    register const void *r1 __asm__("r1") = arg;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void board_nothing(liquid_work *work, const int16_t *ctx, int16_t *soh); /* one instruction: it returns */
__asm__(".section .text.board_nothing, \"ax\", %progbits\n.thumb_func\n.global board_nothing\nboard_nothing:\n\tbx lr\n\t.text");

__attribute__((noinline)) static uint32_t ticks(int which)
{
    static const volatile forecaster either[2] = {board_nothing, liquid_forecast};
    const forecaster f = either[which];
    const uint32_t start = TIMER_VALUE;
    f(&board_work, board_ctx, board_soh);
    return start - TIMER_VALUE;
}

static void print(const char *name, uint32_t n)
{
    char text[64], *p = text + sizeof text;
    const char *c = name;
    uint32_t len = 0, i;
    *--p = 0;
    *--p = '\n';
    do *--p = (char)('0' + n % 10u); while (n /= 10u);
    *--p = ' ';
    while (c[len] != 0) len++;
    for (i = len; i > 0; i--) *--p = name[i - 1];
    host(0x04, p);
}

void board_done(int status)
{
    const uintptr_t exit[2] = {0x20026u, (uintptr_t)status};
    host(0x20, exit);
    for (;;) { }
}

int main(void)
{
    static const char in_name[] = "in.bin", out_name[] = "out.bin";
    const uintptr_t in[3] = {(uintptr_t)in_name, 1u, sizeof in_name - 1u}, out[3] = {(uintptr_t)out_name, 5u, sizeof out_name - 1u};
    const int32_t from = host(0x01, in), to = host(0x01, out);
    const uintptr_t get[3] = {(uintptr_t)from, (uintptr_t)board_ctx, sizeof board_ctx}, put[3] = {(uintptr_t)to, (uintptr_t)board_soh, sizeof board_soh};
    uint32_t n = 0;
#ifdef BOARD_FOLLOW
    const uintptr_t one[3] = {(uintptr_t)from, (uintptr_t)board_ctx, sizeof *board_ctx}, half[3] = {(uintptr_t)to, (uintptr_t)board_half, sizeof board_half};
    liquid_forget(&board_history);
    liquid_follow_forget(&board_follow, 0);
    while (host(0x06, one) == 0) { /* a record, one value a cycle: forecast and half-widths back */
        board_cycle();
        if (board_history.held == LIQUID_CTX && (host(0x05, put) != 0 || host(0x05, half) != 0)) return 2;
    }
#endif
    if (from < 0 || to < 0) return 1;
    TIMER_RELOAD = 0xFFFFFFFFu;
    TIMER_VALUE = 0xFFFFFFFFu;
    TIMER_CTRL = 1u;
    while (host(0x06, get) == 0) { /* SYS_READ returns how many bytes are missing */
        const uint32_t whole = ticks(1), empty = ticks(0);
        if (n++ == 0) {
            print("ticks", whole);
            print("empty", empty);
        }
        if (host(0x05, put) != 0) return 2;
    }
    print("forecasts", n);
    return 0;
}
#endif
